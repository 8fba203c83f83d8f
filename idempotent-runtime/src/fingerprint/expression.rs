//! The value of `fingerprint = expr`.

use ciborium::Value;
use serde::Serialize;

use crate::fingerprint::builder::PartDigest;
use crate::fingerprint::builder::{Piece, Pieces};
use crate::fingerprint::canonical::{write_number, write_string};

/// The reason why a value has no digest. It does not contain the value, which comes from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserialisable {
    #[error("it holds a float that is infinite or not a number, and the canonical form has no text for such values")]
    NotFinite,
    #[error("its `Serialize` fails")]
    Failed,
}

/// Returns the digest of the value's canonical form: JSON with sorted members and with numbers by their value. So it
/// does not depend on a compiler, a machine or the order of a map.
pub(crate) fn digest_of_value<V: Serialize + ?Sized>(value: &V) -> Result<PartDigest, Unserialisable> {
    // Serialised to a tree first, because JSON writes `null` for a float that is not finite.
    let tree = Value::serialized(&value).map_err(|_| Unserialisable::Failed)?;
    let mut canonical = Vec::new();
    write(&tree, &mut canonical)?;
    let mut pieces = Pieces::new();
    pieces.piece(Piece::Value, &canonical);
    Ok(pieces.finish())
}

fn write(value: &Value, canonical: &mut Vec<u8>) -> Result<(), Unserialisable> {
    match value {
        Value::Null => canonical.extend_from_slice(b"null"),
        Value::Bool(true) => canonical.extend_from_slice(b"true"),
        Value::Bool(false) => canonical.extend_from_slice(b"false"),
        Value::Integer(integer) => number(&i128::from(*integer).to_string(), canonical)?,
        Value::Float(float) if float.is_finite() => number(&format!("{float:e}"), canonical)?,
        Value::Float(_) => return Err(Unserialisable::NotFinite),
        Value::Text(text) => write_string(text, canonical),
        // Values that JSON cannot represent are distinguished by the first letter of their text.
        Value::Bytes(bytes) => {
            canonical.push(b'x');
            for byte in bytes {
                canonical.extend_from_slice(format!("{byte:02x}").as_bytes());
            }
        }
        // An integer of more than 64 bits.
        Value::Tag(tag, inner) => {
            canonical.extend_from_slice(format!("g{tag}:").as_bytes());
            write(inner, canonical)?;
        }
        Value::Array(elements) => {
            canonical.push(b'[');
            for element in elements {
                write(element, canonical)?;
                canonical.push(b',');
            }
            canonical.push(b']');
        }
        Value::Map(members) => map(members, canonical)?,
        _ => return Err(Unserialisable::Failed),
    }
    Ok(())
}

fn map(members: &[(Value, Value)], canonical: &mut Vec<u8>) -> Result<(), Unserialisable> {
    let mut written = Vec::with_capacity(members.len());
    for (name, value) in members {
        let (mut of_name, mut of_value) = (Vec::new(), Vec::new());
        write(name, &mut of_name)?;
        write(value, &mut of_value)?;
        written.push((of_name, of_value));
    }
    written.sort();
    canonical.push(b'{');
    for (name, value) in written {
        canonical.extend_from_slice(&name);
        canonical.push(b':');
        canonical.extend_from_slice(&value);
        canonical.push(b',');
    }
    canonical.push(b'}');
    Ok(())
}

fn number(text: &str, canonical: &mut Vec<u8>) -> Result<(), Unserialisable> {
    write_number(text, canonical).ok_or(Unserialisable::Failed)
}
