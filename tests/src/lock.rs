use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. A test that panicked with it is reported itself, and does not make the others fail.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
