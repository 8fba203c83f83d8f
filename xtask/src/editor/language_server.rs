//! Talks to rust-analyzer as an editor does: with requests and notifications of JSON-RPC over its input and output.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long rust-analyzer may take to build the project and its macros.
const PATIENCE: Duration = Duration::from_mins(15);

/// A place in a document. Both numbers count from 0.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A running server, which is ended when this is dropped.
pub(super) struct LanguageServer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    requests: u64,
    /// Whether it has finished reading the project.
    is_ready: bool,
    settings: Value,
    document: PathBuf,
}

impl LanguageServer {
    /// Starts the server. It writes its log to the file `log` in the project's folder.
    pub(super) fn start(program: &Path, project: &Path) -> io::Result<Self> {
        let log = File::create(project.join("log"))?;
        let mut command = Command::new(program);
        let piped = command.current_dir(project).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = piped.spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let settings = json!({ "checkOnSave": false, "cachePriming": { "enable": false } });
        let (output, document) = (BufReader::new(output), PathBuf::new());
        let mut server = Self { process, input, output, requests: 0, is_ready: false, settings, document };
        let initialize = json!({
            "processId": std::process::id(),
            "rootUri": uri(project),
            "initializationOptions": server.settings,
            "capabilities": {
                "experimental": { "serverStatusNotification": true },
                "textDocument": { "hover": { "contentFormat": ["markdown"] }, "completion": {} },
            },
        });
        server.ask("initialize", &initialize)?;
        server.send(&json!({ "jsonrpc": "2.0", "method": "initialized", "params": {} }))?;
        Ok(server)
    }

    /// Opens the document, and waits until its macros are built.
    pub(super) fn open(&mut self, document: &Path, text: &str) -> io::Result<()> {
        document.clone_into(&mut self.document);
        let opened = json!({ "uri": uri(document), "languageId": "rust", "version": 1, "text": text });
        let opened =
            json!({ "jsonrpc": "2.0", "method": "textDocument/didOpen", "params": { "textDocument": opened } });
        self.send(&opened)?;
        let begun = Instant::now();
        loop {
            let diagnostics = self.diagnostics()?;
            let is_building = diagnostics.iter().any(|one| message(one).contains("not yet built"));
            if self.is_ready && !is_building {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("it is not ready: {diagnostics:?}")));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// The completions at a place, sorted.
    pub(super) fn completions(&mut self, at: Position) -> io::Result<Vec<String>> {
        let answer = self.ask("textDocument/completion", &self.place(at))?;
        let items = answer["items"].as_array().or_else(|| answer.as_array()).cloned().unwrap_or_default();
        let labels: BTreeSet<String> = items.iter().map(|item| text(&item["label"])).collect();
        Ok(labels.into_iter().collect())
    }

    /// The text that it shows for the word at a place.
    pub(super) fn hover(&mut self, at: Position) -> io::Result<String> {
        let answer = self.ask("textDocument/hover", &self.place(at))?;
        Ok(text(&answer["contents"]["value"]))
    }

    /// The messages about these lines. Each begins with the number of its line in the range.
    pub(super) fn errors(&mut self, lines: Range<usize>) -> io::Result<Vec<String>> {
        let line = |one: &Value| one["range"]["start"]["line"].as_u64().and_then(|line| usize::try_from(line).ok());
        let about = |one: &Value| {
            let line = line(one).filter(|line| lines.contains(line))?;
            Some(format!("{}: {}", line - lines.start, message(one)))
        };
        Ok(self.diagnostics()?.iter().filter_map(about).collect())
    }

    fn diagnostics(&mut self) -> io::Result<Vec<Value>> {
        let document = json!({ "textDocument": { "uri": uri(&self.document) } });
        let answer = self.ask("textDocument/diagnostic", &document)?;
        Ok(answer["items"].as_array().cloned().unwrap_or_default())
    }

    fn place(&self, Position { line, column }: Position) -> Value {
        let position = json!({ "line": line, "character": column });
        json!({ "textDocument": { "uri": uri(&self.document) }, "position": position })
    }

    /// Sends a request and returns the answer. Meanwhile, answers the server's own requests as an editor does.
    fn ask(&mut self, method: &str, params: &Value) -> io::Result<Value> {
        self.requests += 1;
        let id = self.requests;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))?;
        loop {
            let mut message = self.read()?;
            if message.get("method").is_none() && message["id"] == id {
                return Ok(message["result"].take());
            }
            if message["method"] == "experimental/serverStatus" {
                self.is_ready = message["params"]["quiescent"] == true;
            }
            if message.get("method").is_some() && message.get("id").is_some() {
                let asked = message["params"]["items"].as_array().map_or(0, Vec::len);
                let is_settings = message["method"] == "workspace/configuration";
                let answer = if is_settings { json!(vec![&self.settings; asked]) } else { Value::Null };
                self.send(&json!({ "jsonrpc": "2.0", "id": message["id"], "result": answer }))?;
            }
        }
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        let message = message.to_string();
        write!(self.input, "Content-Length: {}\r\n\r\n{message}", message.len())?;
        self.input.flush()
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(io::Error::other("rust-analyzer has ended; its log is in target/editor/project/log"));
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().map_err(io::Error::other)?;
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut message = vec![0; length];
        self.output.read_exact(&mut message)?;
        serde_json::from_slice(&message).map_err(io::Error::other)
    }
}

impl Drop for LanguageServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn message(diagnostic: &Value) -> String {
    text(&diagnostic["message"])
}
