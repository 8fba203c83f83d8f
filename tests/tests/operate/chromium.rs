//! A headless Chromium with its own profile.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{ChromiumLikeCapabilities as _, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver};

/// Allows Chromium to run as root on a machine without a screen, and to connect only to the test's server.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

pub(crate) struct Chromium {
    pub(crate) driver: WebDriver,
    _service: Service,
    _profile: TempDir,
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Chromium {
    pub(crate) async fn start() -> Self {
        let mut command = Command::new("chromedriver");
        let service = command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut service = Service(
            service.expect("no `chromedriver` here: install it with `apt-get install chromium chromium-driver`"),
        );
        let mut lines = BufReader::new(service.0.stdout.take().expect("a pipe")).lines();
        let port = lines.find_map(|line| {
            let line = line.expect("text");
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let port = port.expect("chromedriver tells its port");
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut wanted = DesiredCapabilities::chrome();
        for flag in FLAGS {
            wanted.add_arg(flag).expect("a flag");
        }
        wanted.add_arg(&format!("--user-data-dir={}", profile.path().display())).expect("a flag");
        for log in ["browser", "performance"] {
            wanted.set_logging_prefs(log, LoggingPrefsLogLevel::All).expect("a log");
        }
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted).await.expect("Chromium starts");
        Self { driver, _service: service, _profile: profile }
    }

    async fn ask(&self, command: &str, parameters: Value) -> Value {
        self.driver.cdp().send_raw(command, parameters).await.expect("Chromium executes the command")
    }

    /// Sends this `Authorization` with every request from now on.
    pub(crate) async fn authorize(&self, authorization: &str) {
        self.ask("Network.enable", json!({})).await;
        self.ask("Network.setExtraHTTPHeaders", json!({"headers": {"authorization": authorization}})).await;
    }

    /// Shows pages as on a screen of this width, for a reader who prefers this colour scheme.
    pub(crate) async fn look_like(&self, width: u32, scheme: &str) {
        let screen = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", screen).await;
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", scheme).await;
    }

    /// A picture of the whole page, as PNG.
    pub(crate) async fn picture(&self) -> Vec<u8> {
        let metrics = self.ask("Page.getLayoutMetrics", json!({})).await;
        let size = &metrics["cssContentSize"];
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let wanted = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let picture = self.ask("Page.captureScreenshot", wanted).await;
        BASE64_STANDARD.decode(picture["data"].as_str().expect("text")).expect("base64")
    }

    /// Runs a script and returns its result. Only the tests run scripts; the page has none.
    pub(crate) async fn evaluate(&self, script: &str) -> Value {
        let result = self.driver.execute(format!("return {script}"), Vec::new()).await.expect("the script runs");
        result.json().clone()
    }

    /// The messages on the console since the last call.
    pub(crate) async fn console(&self) -> Vec<String> {
        let entries = self.driver.browser_log().await.expect("a log");
        entries.into_iter().map(|entry| format!("{}: {}", entry.level, entry.message)).collect()
    }

    /// The requests of pages since the last call, without the page that the browser opens at the start.
    pub(crate) async fn requested(&self) -> Vec<String> {
        let entries = self.driver.get_log("performance").await.expect("a log");
        let events = entries.iter().map(|entry| serde_json::from_str::<Value>(&entry.message).expect("JSON"));
        let sent = events.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        let requests = sent.map(|event| event["message"]["params"].clone());
        let text = |value: &Value| value.as_str().expect("an address").to_owned();
        let by_pages = requests.filter(|request| !text(&request["documentURL"]).starts_with("chrome"));
        by_pages.map(|request| text(&request["request"]["url"])).collect()
    }
}
