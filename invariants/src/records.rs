//! The text form of a record.

use idempotent_runtime::Record;

use crate::source::Source;

/// A text is a record or an error. A record is unchanged after it was written to text and read back.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn record_text(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        assert_eq!(in_and_out(&record), record);
    }
    let record = Source::new(bytes).record();
    assert_eq!(in_and_out(&record), record);
}

fn in_and_out(record: &Record) -> Record {
    let text = serde_json::to_string(record).expect("a record is written");
    assert!(text.starts_with("{\"version\":1,\"status\":") && !text.contains('\n'), "{text}");
    serde_json::from_str(&text).expect("its own text")
}
