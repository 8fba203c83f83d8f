//! The invariants of parsers and decoders for arbitrary bytes. There is one function for each target of the fuzzer. It
//! panics if its invariant does not hold.
//!
//! `cargo xtask fuzz` runs them for a long time. `tests/mutations.rs` runs them briefly with every run of the tests.

mod attribute;
mod keys;
mod multipart;
mod records;
mod source;
mod stores;
mod units_of_time_and_size;

// A crate of macros cannot be linked as a library, so its files are included as modules, under the names that their own
// paths use.
#[path = "../../idempotent-macros/src/args.rs"]
mod args;
#[path = "../../idempotent-macros/src/claim_line.rs"]
mod claim_line;
#[path = "../../idempotent-macros/src/constant.rs"]
mod constant;
#[path = "../../idempotent-macros/src/diagnostics.rs"]
mod diagnostics;
#[path = "../../idempotent-macros/src/document.rs"]
mod document;
#[path = "../../idempotent-macros/src/expand.rs"]
mod expand;
#[path = "../../idempotent-macros/src/fallback.rs"]
mod fallback;
#[path = "../../idempotent-macros/src/handler.rs"]
mod handler;
#[path = "../../idempotent-macros/src/headers.rs"]
mod headers;
#[path = "../../idempotent-macros/src/methods.rs"]
mod methods;
#[path = "../../idempotent-macros/src/model.rs"]
mod model;
#[path = "../../idempotent-macros/src/never_returned.rs"]
mod never_returned;
#[path = "../../idempotent-macros/src/presence.rs"]
mod presence;
#[path = "../../idempotent-macros/src/reader.rs"]
mod reader;
#[path = "../../idempotent-macros/src/rewrite.rs"]
mod rewrite;
#[path = "../../idempotent-macros/src/runtime.rs"]
mod runtime;
#[path = "../../idempotent-macros/src/statuses.rs"]
mod statuses;
#[path = "../../idempotent-macros/src/units.rs"]
mod units;
#[path = "../../idempotent-macros/src/values.rs"]
mod values;

pub use self::attribute::attribute;
pub use self::keys::{key_header, record_key};
pub use self::multipart::multipart;
pub use self::records::record_text;
pub use self::stores::{redis_value, sql_row};
pub use self::units_of_time_and_size::units_of_time_and_size;

/// One target: its name, and the function. The name is also that of the function, of the seeds' folder, and of the
/// program in `fuzz/`.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("attribute", attribute),
    ("key_header", key_header),
    ("multipart", multipart),
    ("record_key", record_key),
    ("record_text", record_text),
    ("redis_value", redis_value),
    ("sql_row", sql_row),
    ("units_of_time_and_size", units_of_time_and_size),
];
