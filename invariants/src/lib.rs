//! What must hold for any bytes that reach a parser or a decoder: one function a target of the fuzzer, which panics where
//! it does not hold.
//!
//! `cargo xtask fuzz` runs them for long, `tests/mutations.rs` for a moment with every run of the tests.

mod attribute;
mod keys;
mod multipart;
mod records;
mod source;
mod stores;
mod units_of_time_and_size;

// A crate of macros cannot be linked, so its files are mounted where their paths lead.
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
#[path = "../../idempotent-macros/src/literal.rs"]
mod literal;
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

pub use self::attribute::attribute;
pub use self::keys::{key_header, record_key};
pub use self::multipart::multipart;
pub use self::records::record_text;
pub use self::stores::{redis_value, sql_row};
pub use self::units_of_time_and_size::units_of_time_and_size;

/// One target: its name, which is that of its function, its seeds' folder and its program in `fuzz/`, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
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
