//! The types that `key = expr` can have.

use crate::idempotency_key::IdempotencyKey;

/// A value of `key = expr`: text, or an `Option` of text.
#[diagnostic::on_unimplemented(
    message = "`key` must be a string or an `Option` of one, but this is `{Self}`",
    label = "neither `&str`, `String` nor an `Option` of either",
    note = "write `key = order.client_token` for a `String`, or `key = order.client_token.to_string()` for what displays itself"
)]
pub trait KeyExpression {
    /// Returns the key, if there is one.
    fn key(&self) -> Option<&str>;
}

impl KeyExpression for str {
    fn key(&self) -> Option<&str> {
        Some(self)
    }
}

impl KeyExpression for String {
    fn key(&self) -> Option<&str> {
        Some(self)
    }
}

impl KeyExpression for std::borrow::Cow<'_, str> {
    fn key(&self) -> Option<&str> {
        Some(self)
    }
}

impl KeyExpression for IdempotencyKey {
    fn key(&self) -> Option<&str> {
        Some(self.as_str())
    }
}

impl<K: KeyExpression> KeyExpression for Option<K> {
    fn key(&self) -> Option<&str> {
        self.as_ref().and_then(KeyExpression::key)
    }
}

impl<K: KeyExpression + ?Sized> KeyExpression for &K {
    fn key(&self) -> Option<&str> {
        (**self).key()
    }
}
