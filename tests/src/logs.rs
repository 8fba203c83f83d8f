//! Everything that a test logs, as text.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Level;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Collects the events and spans of the current thread, at every level, until it is dropped.
///
/// Tokio's default test runtime has this one thread, tasks included.
pub struct Logs {
    written: Written,
    _guard: DefaultGuard,
}

impl Logs {
    /// Begins to collect.
    pub fn collect() -> Self {
        let written = Written::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(written.clone())
            .with_max_level(Level::TRACE)
            .with_span_events(FmtSpan::CLOSE)
            .with_ansi(false)
            .finish();
        Self { written, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was written until now.
    pub fn text(&self) -> String {
        let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&written).into_owned()
    }

    /// The lines of this level, such as `ERROR`.
    pub fn of_level(&self, level: &str) -> Vec<String> {
        let marker = format!(" {level} ");
        self.text().lines().filter(|line| line.contains(&marker)).map(str::to_owned).collect()
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
