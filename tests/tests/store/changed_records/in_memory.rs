//! Changes of records by a store that returns another record than it was given.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use idempotent_runtime::store::{Claim, ClaimRequest, MemoryStore, Store, StoreAdmin, StoreError};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};
use idempotent_tests::{Wrapper, lock};

use super::{Stored, with_each_byte_changed};

/// A store that replays the changed record, if there is one.
#[derive(Clone, Default)]
pub(super) struct Changing {
    inner: MemoryStore,
    changed: Arc<Mutex<Option<Record>>>,
}

impl Wrapper for Changing {
    fn inner(&self) -> &impl StoreAdmin {
        &self.inner
    }

    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let claim = self.inner.claim(key, request).await?;
        let changed = lock(&self.changed).clone();
        Ok(match (claim, changed) {
            (Claim::Completed(_), Some(changed)) => Claim::Completed(changed),
            (claim, _) => claim,
        })
    }
}

impl Stored for Changing {
    type Change = Record;

    async fn changes(&self, key: &RecordKey) -> Vec<Record> {
        let Ok(Claim::Completed(record)) = self.inner.claim(key, idempotent_tests::stores::claim_request()).await
        else {
            panic!("the record is there");
        };
        let mut changes = Vec::new();
        let mut add = |change: &dyn Fn(&mut Record)| {
            let mut other = record.clone();
            change(&mut other);
            changes.push(other);
        };
        for status in [100, 101, 199, 200, 204, 205, 304, 500, 999] {
            add(&|record| record.status = StatusCode::from_u16(status).expect("a status"));
        }
        let line = |name: &str, value: &[u8]| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_bytes(value).expect("a value"))
        };
        add(&|record| record.headers.clear());
        add(&|record| record.headers = vec![line("location", b"https://evil.example")]);
        add(&|record| record.headers = vec![line("content-length", b"3"), line("transfer-encoding", b"chunked")]);
        add(&|record| record.headers = vec![line("connection", b"close"), line("set-cookie", b"a=b")]);
        add(&|record| record.headers = vec![line("idempotency-seal", b"\xff")]);
        add(&|record| record.headers = (0..40_000).map(|number| line(&format!("x-{number}"), b"")).collect());
        for (name, value) in &record.headers {
            for value in with_each_byte_changed(value.as_bytes()) {
                add(&|record| record.headers = vec![line(name.as_str(), &value)]);
            }
        }
        let bytes = record.body_bytes().cloned().unwrap_or_default();
        let bodies =
            with_each_byte_changed(&bytes).map(Bytes::from).chain([Bytes::new(), Bytes::from("PAID 1000000 EUR")]);
        for body in bodies {
            add(&|record| record.body = RecordedBody::Sealed(body.clone()));
            add(&|record| record.body = RecordedBody::Whole(body.clone()));
        }
        add(&|record| record.body = RecordedBody::Whole(bytes.clone()));
        add(&|record| record.body = RecordedBody::NotRecorded);
        for fingerprint in with_each_byte_changed(record.fingerprint.as_bytes()) {
            let fingerprint = Fingerprint::from_bytes(fingerprint.try_into().expect("32 bytes"));
            add(&|record| record.fingerprint = fingerprint);
        }
        for time in [UNIX_EPOCH, UNIX_EPOCH - Duration::from_secs(1), record.recorded_at + Duration::from_secs(1)] {
            add(&|record| record.recorded_at = time);
        }
        changes
    }

    async fn change(&self, _: &RecordKey, change: &Record) {
        *lock(&self.changed) = Some(change.clone());
    }

    async fn restore(&self, _: &RecordKey) {
        *lock(&self.changed) = None;
    }
}
