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
