//! Whether an argument of a handler is a `Tx`: what the attribute asks of types.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::transaction::tx::Tx;

/// Tells whether an argument's type is a [`Tx`](crate::Tx): an inherent constant goes before that of the trait.
#[derive(Debug)]
pub struct Argument<T>(std::marker::PhantomData<T>);

/// What holds for every other type.
pub trait OtherArgument {
    /// None.
    const DATABASE: Option<&'static str> = None;
}

impl<T> OtherArgument for Argument<T> {}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl<DB: sqlx::Database> Argument<Tx<DB>> {
    /// As sqlx names it.
    pub const DATABASE: Option<&'static str> = Some(DB::NAME);
}

/// Rejects a `Tx` after the claim, when the program is compiled.
///
/// # Panics
///
/// If the argument is one.
pub const fn check_extracted_after_claim(database: Option<&'static str>) {
    assert!(
        database.is_none(),
        "a `Tx` begins with the claim, so it is extracted before it: move it in front of the arguments after the claim, and write `claim_after = tx`"
    );
}
