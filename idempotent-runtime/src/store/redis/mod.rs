//! The store for many processes that have a Redis or Valkey already.
//!
//! Each operation is one round trip: a replay takes one, a first execution two. From Redis 7 on, a claim is the command
//! `SET … NX GET`, which returns an existing value. Everything else is a script. The claim of a key that is already
//! claimed is a script too, which takes a second round trip. The name of a new claim is sent to an index
//! afterwards, and no request waits for that.
//!
//! While calls are under way, further first claims and completions gather: many claims are one pipeline of `SET`s, and
//! many completions are one script. See `batched_claim` and `batched_completion`. In a Cluster, each key may be on a
//! different server, so each operation is a call of its own.
//!
//! All data of a key is one JSON value under one name, so a Cluster needs no hash tags. Only the marks of claims that
//! were given back have names of their own: see `given_back`. The ttl is the expiry of the name. The lease is computed
//! from that expiry, so attempt numbers outlive a lease and only the server's clock counts. A claim that never expires
//! has the end of its lease in its value, by the same clock. The names of all claims are in sets: see `index`.

pub(crate) mod address;
pub(crate) mod batched;
pub(crate) mod batched_claim;
pub(crate) mod batched_completion;
pub(crate) mod certificates;
pub(crate) mod claim;
#[cfg(feature = "redis-cluster")]
pub(crate) mod cluster;
pub(crate) mod complete;
pub(crate) mod connection;
pub(crate) mod connection_limit;
pub(crate) mod credentials;
pub(crate) mod eviction;
pub(crate) mod forbidden;
pub(crate) mod given_back;
pub(crate) mod index;
pub(crate) mod inner;
pub(crate) mod listener;
pub(crate) mod listing;
pub(crate) mod names;
pub(crate) mod node;
pub(crate) mod open;
pub(crate) mod open_error;
pub(crate) mod origin;

pub(crate) mod reconnecting;
pub(crate) mod record_limit;
pub(crate) mod resolve;
pub(crate) mod rights;
pub(crate) mod scripts;
#[cfg(feature = "redis-sentinel")]
pub(crate) mod sentinel;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod tcp;
pub(crate) mod unawaited;
pub(crate) mod value;
pub(crate) mod wire;
