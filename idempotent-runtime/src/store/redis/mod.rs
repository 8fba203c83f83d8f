//! The store for many processes that have a Redis or Valkey already.
//!
//! Each operation is one round trip: a replay costs one, a first execution two. From Redis 7 on a claim is the server's own
//! `SET … NX GET`, which tells what stands there already; everything else is a script, and so is the claim of a key that
//! somebody holds, which takes a second round trip. All of a key's data is one value under one name, so that a Cluster needs
//! no hash tags. Only what keeps a claim from arriving that was given back before has a name of its own: `given_back`. The value is JSON; the key's own expiry is the time to live, by which its lease is judged too, so that
//! attempt numbers outlive a lease and only the server's clock counts. A claim that never expires carries the end of its
//! lease, by the same clock; the names of these claims are in a set of their own: `index`.

#[cfg(feature = "redis-cluster")]
pub(crate) mod cluster;
pub(crate) mod connection;
pub(crate) mod given_back;
pub(crate) mod index;
pub(crate) mod listener;
pub(crate) mod node;
pub(crate) mod open;
pub(crate) mod scripts;
pub(crate) mod store;
pub(crate) mod value;
