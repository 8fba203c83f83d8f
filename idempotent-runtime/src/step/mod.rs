//! Parts of a handler that run once for each record key. The result of each part is recorded when the part ends.
//!
//! A step's record is in the handler's store under [`RecordKey::step`](crate::RecordKey::step). It is made like the
//! record of a response: the step is claimed, its lease is renewed, and it is completed.
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
pub(crate) mod json_loss;
pub(crate) mod names;
pub(crate) mod rejections;
pub(crate) mod steps;
