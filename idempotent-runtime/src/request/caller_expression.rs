//! The types that `caller = expr` can have.

use std::fmt::Display;
use std::ops::Deref;

use crate::request::identify::Gate;

/// A value that implements `Display`.
#[diagnostic::on_unimplemented(
    message = "`caller` must be a value that is `Display`, a tuple of such values, or an `Option`, but this is `{Self}`",
    label = "does not implement `Display`",
    note = "write `caller = user.id`, `caller = (tenant.id, user.id)`, or `caller = session.map(|session| session.user)`",
    note = "for a future write `.await` after it; for a header `headers.get(…).and_then(|value| value.to_str().ok())`"
)]
pub trait CallerPart {
    /// Returns the value as text.
    fn text(&self) -> String;
}

#[diagnostic::do_not_recommend]
impl<T: Display + ?Sized> CallerPart for T {
    fn text(&self) -> String {
        self.to_string()
    }
}

/// An `Option`, or a tuple.
pub trait Composed {
    /// Returns the caller, if there is one.
    fn caller(&self) -> Option<String>;
}

/// An `Option` of a tuple.
pub trait OptionalTuple {
    /// Returns the caller, if there is one.
    fn caller(&self) -> Option<String>;
}

impl<T: CallerPart> Composed for Option<T> {
    fn caller(&self) -> Option<String> {
        self.as_ref().map(CallerPart::text)
    }
}

macro_rules! tuples {
    ($($($part:ident)+),*) => {
        $(
            impl<$($part: CallerPart),+> Composed for ($($part,)+) {
                fn caller(&self) -> Option<String> {
                    #[expect(non_snake_case, reason = "named as the type of the part")]
                    let ($($part,)+) = self;
                    Some(joined(&[$($part.text()),+]))
                }
            }

            impl<$($part: CallerPart),+> OptionalTuple for Option<($($part,)+)> {
                fn caller(&self) -> Option<String> {
                    self.as_ref().and_then(Composed::caller)
                }
            }
        )*
    };
}

tuples!(A, A B, A B C, A B C D, A B C D E, A B C D E F);

/// The value of the expression. The compiler takes the first method `idempotent_caller` that fits the type: the method
/// of this type, or of a type that this type dereferences to. Each type has only one candidate, so a mistake in the
/// expression causes no second error.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct CallerExpression<'a, C: ?Sized>(ComposedOrPlain<'a, C>);

#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct ComposedOrPlain<'a, C: ?Sized>(Plain<'a, C>);

#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct Plain<'a, C: ?Sized>(&'a C);

impl<'a, C: ?Sized> CallerExpression<'a, C> {
    /// Wraps this value.
    pub fn of(value: &'a C) -> Self {
        Self(ComposedOrPlain(Plain(value)))
    }
}

impl<C: OptionalTuple> CallerExpression<'_, C> {
    /// Sets the caller of the request, if there is one.
    pub fn idempotent_caller(&self, gate: &mut Gate) {
        gate.set_caller(|| self.0.0.0.caller());
    }
}

impl<'a, C: ?Sized> Deref for CallerExpression<'a, C> {
    type Target = ComposedOrPlain<'a, C>;

    fn deref(&self) -> &ComposedOrPlain<'a, C> {
        &self.0
    }
}

impl<C: Composed> ComposedOrPlain<'_, C> {
    /// Sets the caller of the request, if there is one.
    pub fn idempotent_caller(&self, gate: &mut Gate) {
        gate.set_caller(|| self.0.0.caller());
    }
}

impl<'a, C: ?Sized> Deref for ComposedOrPlain<'a, C> {
    type Target = Plain<'a, C>;

    fn deref(&self) -> &Plain<'a, C> {
        &self.0
    }
}

impl<C: ?Sized> Plain<'_, C> {
    /// Sets the caller of the request.
    pub fn idempotent_caller(&self, gate: &mut Gate)
    where
        C: CallerPart,
    {
        gate.set_caller(|| Some(self.0.text()));
    }
}

/// Joins the parts into one text. `/` separates the parts, and each `/` or `\` in a part is escaped by `\`, so
/// different tuples have different texts.
fn joined(parts: &[String]) -> String {
    let escaped: Vec<String> = parts.iter().map(|part| part.replace('\\', "\\\\").replace('/', "\\/")).collect();
    escaped.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_that_differ_have_different_texts() {
        let parts = ["", "a", "b", "/", "\\", "a/b", "\\/", "/\\"];
        let mut texts: Vec<String> = parts.map(|part| joined(&[part.to_owned()])).to_vec();
        for first in parts {
            for second in parts {
                texts.push(joined(&[first.to_owned(), second.to_owned()]));
                texts.extend(parts.map(|third| joined(&[first.to_owned(), second.to_owned(), third.to_owned()])));
            }
        }
        let count = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }
}
