//! Operations of many callers that go out together.

pub(super) mod batcher;
pub(super) mod queue;
pub(super) mod sending;
#[cfg(test)]
mod tests;
