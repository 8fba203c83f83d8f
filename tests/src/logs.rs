//! Everything that a test logs, as text.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Once;

use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;

/// Collects the events and spans of the current thread, at every level, until it is dropped.
///
/// Tokio's default test runtime runs everything on this one thread, its tasks included.
pub struct Logs {
    written: Rc<RefCell<Vec<u8>>>,
}

thread_local! {
    static COLLECTING: RefCell<Option<Rc<RefCell<Vec<u8>>>>> = const { RefCell::new(None) };
}

impl Logs {
    /// Begins to collect.
    ///
    /// # Panics
    ///
    /// When the process already has another subscriber.
    pub fn collect() -> Self {
        // There is one subscriber for the process. With one subscriber per thread, `tracing` may ask the wrong one
        // whether an event is wanted.
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let lines = fmt::layer().with_writer(|| CurrentThread).with_span_events(FmtSpan::CLOSE).with_ansi(false);
            // Other tests of the program run on other threads. They log nothing, and formatting must not slow them
            // down.
            let collecting = dynamic_filter_fn(|_, _| COLLECTING.with_borrow(Option::is_some));
            let subscriber = tracing_subscriber::registry().with(lines).with(collecting);
            tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
        });
        let written = Rc::<RefCell<Vec<u8>>>::default();
        COLLECTING.set(Some(Rc::clone(&written)));
        Self { written }
    }

    /// Everything that was logged until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.borrow()).into_owned()
    }

    /// The lines of this level, such as `ERROR`.
    pub fn of_level(&self, level: &str) -> Vec<String> {
        let marker = format!(" {level} ");
        self.text().lines().filter(|line| line.contains(&marker)).map(str::to_owned).collect()
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        COLLECTING.set(None);
    }
}

struct CurrentThread;

impl io::Write for CurrentThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        COLLECTING.with_borrow(|collecting| {
            if let Some(written) = collecting {
                written.borrow_mut().extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
