//! The contents of a store, as operators need them: for the inspector, for the program `idempotent`, and for your own
//! tools.
//!
//! An [`EntryView`] says in which [`State`] a key is and what that state means. A [`Scan`] counts and collects the
//! entries of a listing. Keys are [`masked`] unless [`Keys::Revealed`] is requested. A report contains text of clients
//! unescaped: print it with [`visible`], and JSON with [`visible_json`]. A [`Finding`] says what happened to a request
//! whose outcome is unknown: pass it to [`Registry::resolve`](crate::Registry::resolve).

pub(crate) mod audit;
pub(crate) mod entry_view;
pub(crate) mod finding;
pub(crate) mod masking;
pub(crate) mod resolve;
pub(crate) mod scan;

pub use crate::operate::audit::AUDIT_TARGET;
pub use crate::operate::entry_view::{EntryReport, EntryView, State, UnknownState};
pub use crate::operate::finding::{Finding, InvalidFinding};
pub use crate::operate::masking::{Keys, masked, visible, visible_json};
pub use crate::operate::resolve::ResolveError;
pub use crate::operate::scan::{Counts, Scan};
