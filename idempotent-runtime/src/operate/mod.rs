//! What is in a store, in an operator's words: for the inspector, for the program `idempotent`, and for tools of your own.
//!
//! An [`EntryView`] says in which [`State`] a key is and what follows from it. A [`Scan`] counts and collects the entries of a
//! listing. Keys are [`masked`], and text of other people is made [`visible`], unless [`Keys::Revealed`] is asked for.

pub(crate) mod entry_view;
pub(crate) mod masking;
pub(crate) mod scan;

pub use crate::operate::entry_view::{EntryReport, EntryView, State, UnknownState};
pub use crate::operate::masking::{Keys, masked, visible};
pub use crate::operate::scan::{Counts, Scan};
