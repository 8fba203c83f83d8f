//! Many writes of one kind in one statement. Each statement needs two changes of threads in sqlx, which take longer
//! than the statement itself.
//!
//! Such a statement covers only the usual case: a key without a row is claimed, or a held claim is completed. If one of
//! its rows is another case, each of its writes is applied again alone, in the same transaction and at the same time of
//! the clock. A write that had taken effect then finds its own token, and gives the same answer.

use std::sync::LazyLock;

use sqlx::sqlite::{SqliteArguments, SqliteConnection};

/// A statement that takes many rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Claim,
    Complete,
}

/// The numbers of rows that have a prepared statement each, in descending order.
pub(super) const SIZES: [usize; 4] = [64, 16, 4, 1];

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Claim, Self::Complete];

    fn sql(self, rows: usize) -> &'static str {
        static CLAIM: LazyLock<[String; SIZES.len()]> = LazyLock::new(|| SIZES.map(|rows| Kind::Claim.text(rows)));
        static COMPLETE: LazyLock<[String; SIZES.len()]> =
            LazyLock::new(|| SIZES.map(|rows| Kind::Complete.text(rows)));
        let texts = match self {
            Self::Claim => &*CLAIM,
            Self::Complete => &*COMPLETE,
        };
        let size = SIZES.iter().position(|&size| size == rows).expect("one of the sizes");
        &texts[size]
    }

    /// Returns the statement. The arguments of one row are adjacent, in the order of the columns that the statement
    /// names.
    fn text(self, rows: usize) -> String {
        let values = |row: &str| vec![row; rows].join(", ");
        match self {
            Self::Claim => format!(
                "INSERT INTO main.idempotency_records (key, fingerprint, token, claim_ttl, lease, lease_until, expires_at, \
                 lease_id, clock, state, attempt) VALUES {} ON CONFLICT (key) DO NOTHING",
                values("(?, ?, ?, ?, ?, ?, ?, ?, ?, 'claimed', 1)")
            ),
            // The token is compared in the same statement, so a holder that lost its claim changes nothing.
            Self::Complete => format!(
                "WITH done (key, token, now, expires_at, fingerprint, recorded_at, status, headers, body, counted_bytes) \
                 AS (VALUES {}) \
                 UPDATE main.idempotency_records SET state = 'completed', lease_until = NULL, expires_at = done.expires_at, \
                 fingerprint = done.fingerprint, recorded_at = done.recorded_at, status = done.status, \
                 headers = done.headers, body = done.body, counted_bytes = done.counted_bytes FROM done WHERE idempotency_records.key = done.key \
                 AND idempotency_records.token = done.token AND idempotency_records.state = 'claimed' \
                 AND idempotency_records.expires_at > done.now",
                values("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
            ),
        }
    }
}

/// Writes as many rows as one of [`SIZES`]. Returns false if a row is not the usual case.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    kind: Kind,
    rows: usize,
    arguments: SqliteArguments,
) -> Result<bool, sqlx::Error> {
    let written = sqlx::query_with(kind.sql(rows), arguments).execute(connection).await?;
    Ok(written.rows_affected() == rows as u64)
}
