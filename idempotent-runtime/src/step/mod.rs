//! Parts of a handler that run once for each record key: what each came to is recorded as it ends.
//!
//! A step's record is in the handler's store under [`RecordKey::step`](crate::RecordKey::step), and is made as a
//! response's is: claimed, its lease renewed, completed.
//!
//! ```text
//! step ──claim──▶ recorded before: its result, the closure does not run
//!          │
//!          ├──▶ acquired ──closure──▶ Ok: completed(result) ──ttl──▶ absent
//!          │                     ├──▶ Err: released
//!          │                     └──▶ dropped, panicked: lapsed; process dead: lapses with its lease
//!          └──▶ in flight: another attempt that lost the key runs it; waited for
//! ```

pub(crate) mod claim;
pub(crate) mod error;
pub(crate) mod names;
pub(crate) mod rejections;
pub(crate) mod steps;
