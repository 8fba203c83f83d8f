//! What operators look at and rely on: the inspector, the documents, and a load that leaves nothing behind.

mod documents;
mod inspector;
mod soak;
