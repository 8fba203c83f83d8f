//! The numbers of advisory locks, and the statements that ask for them.

use sha2::{Digest, Sha256};

/// The number of an advisory lock. PostgreSQL has two spaces of them for the whole database, of 64 bits each: two that meet
/// by chance cost a rejection, never a second execution.
pub(super) fn lock(purpose: &[u8], parts: &[&[u8]]) -> i64 {
    let mut digest = Sha256::new_with_prefix("idempotent-runtime");
    for part in std::iter::once(&purpose).chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    i64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}

/// The other request whose lock the holder of the key has too, by [`Fingerprint::bits`](crate::Fingerprint::bits), or NULL. A
/// missing lock of our request proves nothing: PostgreSQL releases the locks of a transaction one by one, and a look for a
/// lost record holds only the lock of the key.
///
/// `pg_locks` is read once, because each look at it is a moment of its own.
macro_rules! other_request {
    ($requests:literal, $asked_for:literal, $key:literal) => {
        concat!(
            "(WITH held AS MATERIALIZED (\
             SELECT pid, classid::bigint AS class, objid::bigint AS object, objsubid AS form FROM pg_locks \
             WHERE locktype = 'advisory' AND granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
             SELECT request.object::oid::int4 FROM held key JOIN held request USING (pid) \
             WHERE key.form = 1 AND (key.class << 32 | key.object) = ",
            $key,
            " AND request.form = 2 AND request.class = ",
            $requests,
            "::bigint & 4294967295 AND request.object <> ",
            $asked_for,
            "::bigint & 4294967295 LIMIT 1)"
        )
    };
}

pub(super) use other_request;

/// Tries the locks of a request and of its key, and returns which it got. The request's lock comes first, so that the request
/// of each holder of a key is known.
pub(super) fn try_locks(requests: i32, asked_for: i32, key: i64) -> String {
    format!(
        "CASE WHEN NOT pg_try_advisory_xact_lock({requests}, {asked_for}) THEN 'same' \
         WHEN NOT pg_try_advisory_xact_lock({key}) THEN 'held' ELSE 'acquired' END"
    )
}

pub(super) const OTHER_REQUEST: &str = concat!("SELECT ", other_request!("$1", "$2", "$3"));

/// Without taking it, which would get in the way of a transaction that tries it meanwhile.
pub(super) const IS_LOCKED: &str = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = $1)";

pub(super) const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock($1)";
