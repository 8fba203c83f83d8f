//! Finds out at compile time whether an argument of a handler is a `Tx`, for the attribute.

#[cfg(feature = "__transactions")]
use crate::transaction::tx::Tx;

/// Tells whether an argument's type is a [`Tx`](crate::Tx): an inherent constant takes precedence over the trait's
/// constant.
#[derive(Debug)]
pub struct Argument<T>(std::marker::PhantomData<T>);

/// The value for every other type.
pub trait OtherArgument {
    /// No database.
    const DATABASE: Option<&'static str> = None;
}

impl<T> OtherArgument for Argument<T> {}

#[cfg(feature = "__transactions")]
impl<DB: sqlx::Database> Argument<Tx<DB>> {
    /// The name that sqlx gives the database.
    pub const DATABASE: Option<&'static str> = Some(DB::NAME);
}

/// Rejects a `Tx` among the arguments after the claim, at compile time.
///
/// # Panics
///
/// If the argument is a `Tx`.
pub const fn check_extracted_after_claim(database: Option<&'static str>) {
    assert!(
        database.is_none(),
        "a `Tx` begins with the claim, so it is extracted before it: move it in front of the arguments after the claim, and write `claim_after = tx`"
    );
}
