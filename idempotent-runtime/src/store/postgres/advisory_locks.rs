//! The numbers of advisory locks, and the statements that use them.

use sha2::{Digest, Sha256};

/// Returns the number of an advisory lock. PostgreSQL has two spaces of such numbers in a database, of 64 bits each. If two locks
/// have the same number by chance, a request is rejected. No handler runs twice because of it.
pub(super) fn lock(purpose: &[u8], parts: &[&[u8]]) -> i64 {
    let mut digest = Sha256::new_with_prefix("idempotent-runtime");
    for part in std::iter::once(&purpose).chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    i64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}

/// If the holder of the key's lock also has the lock of another request, this is that request's
/// [`Fingerprint::bits`](crate::Fingerprint::bits). Otherwise it is NULL. If the lock of this request is missing, that proves
/// nothing: PostgreSQL releases the locks of a transaction one by one, and a search for a lost record holds only the key's lock.
///
/// The statement reads `pg_locks` once, because two reads can show different moments.
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

/// Returns an expression that tries the locks of a request and of its key, and says which it got. It tries the request's lock first,
/// so that the request of each holder of a key's lock is known.
pub(super) fn try_locks(requests: i32, asked_for: i32, key: i64) -> String {
    format!(
        "CASE WHEN NOT pg_try_advisory_xact_lock({requests}, {asked_for}) THEN 'same' \
         WHEN NOT pg_try_advisory_xact_lock({key}) THEN 'held' ELSE 'acquired' END"
    )
}

pub(super) const OTHER_REQUEST: &str = concat!("SELECT ", other_request!("$1", "$2", "$3"));

/// Returns whether a lock is held. It does not try the lock, because a transaction that tries the lock at the same time would fail.
pub(super) const IS_LOCKED: &str = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = $1)";

pub(super) const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock($1)";
