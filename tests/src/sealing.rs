//! Sealing keys.

use idempotent_runtime::SealingKey;

/// The sealing key with this number.
///
/// # Panics
///
/// Never: its bytes differ.
pub fn sealing_key(number: u8) -> SealingKey {
    SealingKey::from_bytes(std::array::from_fn(|index| u8::try_from(index).unwrap_or_default() ^ number))
        .expect("the bytes differ")
}
