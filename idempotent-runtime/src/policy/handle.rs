//! A policy in use: that of a handler lives as long as the program, that of a layer as long as its uses.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::policy::Policy;

#[derive(Clone)]
pub(crate) enum PolicyHandle {
    Handler(&'static Policy),
    Layer(Arc<Policy>),
}

impl Deref for PolicyHandle {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        match self {
            Self::Handler(policy) => policy,
            Self::Layer(policy) => policy,
        }
    }
}

impl fmt::Debug for PolicyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
