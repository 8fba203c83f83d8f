//! Ends a claim by an operator's decision, under the write lock. The lease is fenced first, as before a takeover.

use sqlx::sqlite::SqliteConnection;

use crate::key::RecordKey;
use crate::record::unix_millis;
use crate::store::claim::Token;
use crate::store::claim_decision::StoredState;
use crate::store::columns::token_text;
use crate::store::error::StoreError;
use crate::store::resolution::{Resolution, Resolved};
use crate::store::row::headers_text;
use crate::store::sqlite::bound::counted_bytes;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::failure::Failure;
use crate::store::sqlite::locked::{Context, MOST_LOOKS, changing, look};
use crate::store::sqlite::writes::{Write, is_completed_by};

// Both statements run under the write lock after the claim was read, so it is still the claim that the decision is
// about.
const EXECUTED: &str = "UPDATE main.idempotency_records SET state = 'completed', token = ?3, lease_until = NULL, \
     expires_at = ?4, fingerprint = ?5, recorded_at = ?6, status = ?7, headers = ?8, body = ?9, counted_bytes = ?10 \
     WHERE key = ?1 AND token = ?2 AND state = 'claimed'";
const NOT_EXECUTED: &str = "DELETE FROM main.idempotency_records WHERE key = ?1 AND token = ?2 AND state = 'claimed'";

pub(super) struct ResolveWrite {
    key: RecordKey,
    token: Token,
    resolution: Resolution,
    headers: String,
}

impl ResolveWrite {
    pub(super) fn new(key: &RecordKey, token: Token, resolution: Resolution) -> Result<Self, StoreError> {
        let headers = match &resolution {
            Resolution::Executed { record, .. } => headers_text(record)?,
            Resolution::NotExecuted => String::new(),
        };
        Ok(Self { key: key.clone(), token, resolution, headers })
    }

    async fn end(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<(), sqlx::Error> {
        let token = token_text(self.token);
        let statement = match &self.resolution {
            Resolution::NotExecuted => sqlx::query(NOT_EXECUTED).bind(self.key.as_str()).bind(token),
            Resolution::Executed { token: own, record, ttl } => sqlx::query(EXECUTED)
                .bind(self.key.as_str())
                .bind(token)
                .bind(token_text(*own))
                .bind(clock.after(*ttl))
                .bind(record.fingerprint.to_string())
                .bind(unix_millis(record.recorded_at))
                .bind(record.status.as_u16())
                .bind(&self.headers)
                .bind(record.body_bytes().map(AsRef::<[u8]>::as_ref))
                .bind(counted_bytes(&self.key, Some((&self.headers, record)))),
        };
        statement.execute(connection).await.map(drop)
    }
}

impl Write for ResolveWrite {
    type Output = Resolved;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Resolved, Failure> {
        for _ in 0..MOST_LOOKS {
            let (state, holder) = look(connection, context, &self.key, None).await?;
            match state {
                Some(StoredState::Claimed(claim)) if claim.token == self.token => {
                    if claim.leased {
                        return Ok(Resolved::StillRunning);
                    }
                }
                _ => return self.recognise(connection, context.clock).await,
            }
            if let Some(holder) = holder
                && !context.leases.fence(&[holder.claim]).await?.contains(&holder.claim.lease)
            {
                // The lease was renewed meanwhile.
                continue;
            }
            self.end(connection, context.clock).await?;
            return Ok(Resolved::Yes);
        }
        Err(changing().into())
    }

    fn bytes(&self) -> usize {
        match &self.resolution {
            Resolution::Executed { record, .. } => self.headers.len() + record.payload_bytes(),
            Resolution::NotExecuted => 0,
        }
    }
}

impl ResolveWrite {
    /// Checks whether an earlier try took effect although its answer was lost.
    async fn recognise(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<Resolved, Failure> {
        let is_ours = match &self.resolution {
            Resolution::Executed { token, .. } => is_completed_by(connection, clock, &self.key, *token).await?,
            Resolution::NotExecuted => false,
        };
        Ok(if is_ours { Resolved::Yes } else { Resolved::ChangedHands })
    }
}
