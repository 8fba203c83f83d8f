//! For tests of stores: the rules that every one of them keeps.

pub mod conformance;
#[doc(hidden)]
pub mod decoders;
