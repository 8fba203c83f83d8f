//! Reads the value of one argument, whatever it may be: words, strings, lists, units.

use std::time::Duration;

use idempotent_policy::{KNOWN_METHODS, SHORTEST_WAIT};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{Expr, Lit, LitStr, Path};

use crate::args::{Argument, Arguments};
use crate::diagnostics::{Diagnostics, listed, nearest};
use crate::model::{Cache, Choice, Fingerprint, InFlight, Isolation, Methods};
use crate::runtime::Runtime;
use crate::units::{duration, size_in_bytes};

const ONLY: &str =
    "`only` takes one expression, or several as a tuple; write `fingerprint = only((&order.amount, &order.currency))`";

/// Reads one argument after the other; a wrong one is reported and reads as absent.
pub(crate) struct Reader<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) diagnostics: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn value(&mut self, name: &str, example: &str) -> Option<Expr> {
        let Argument { name: at, value } = self.arguments.get(name)?;
        if value.is_none() {
            self.diagnostics.error(at, format!("`{name}` needs a value; write `{name} = {example}`"));
        }
        value.as_ref().map(ungrouped).cloned()
    }

    pub(crate) fn expression(&mut self, name: &str, example: &str) -> Option<Expr> {
        self.value(name, example)
    }

    fn string(&mut self, name: &str, example: &str) -> Option<(String, Expr)> {
        let value = self.value(name, &format!("\"{example}\""))?;
        let Some(text) = string_of(&value) else {
            self.diagnostics.error(&value, format!("`{name}` must be a string; write `{name} = \"{example}\"`"));
            return None;
        };
        Some((text, value))
    }

    /// A name that people read in logs and stores.
    pub(crate) fn name(&mut self, name: &str, example: &str) -> Option<String> {
        let (text, at) = self.string(name, example)?;
        match idempotent_policy::check_name(&text) {
            Ok(()) => Some(text),
            Err(wrong) => {
                self.diagnostics.error(at, format!("`{name}` {wrong}; write `{name} = \"{example}\"`"));
                None
            }
        }
    }

    pub(crate) fn scope(&mut self) -> Option<String> {
        self.name("scope", "charges")
    }

    pub(crate) fn duration(&mut self, name: &str, example: &str, shortest: Duration) -> Option<Duration> {
        let (text, at) = self.string(name, example)?;
        self.duration_in(name, &text, &at, &format!("{name} = \"{example}\""), shortest)
    }

    fn duration_in(
        &mut self,
        name: &str,
        text: &str,
        at: impl ToTokens,
        example: &str,
        shortest: Duration,
    ) -> Option<Duration> {
        let read = duration(text).map_err(|reason| format!("is no duration: {reason}"));
        let checked = read.and_then(|read| idempotent_policy::check_duration(read, shortest).map(|()| read));
        checked.map_err(|wrong| self.diagnostics.error(at, format!("`{name}` {wrong}; write `{example}`"))).ok()
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        match self.arguments.get(name).map(|argument| argument.value.as_ref().map(ungrouped)) {
            None => false,
            Some(None) => true,
            Some(Some(Expr::Lit(literal))) if matches!(literal.lit, Lit::Bool(_)) => {
                matches!(&literal.lit, Lit::Bool(literal) if literal.value)
            }
            Some(Some(other)) => {
                self.diagnostics.error(other, format!("`{name}` takes no value; write `{name}`"));
                false
            }
        }
    }

    /// One of two words; the first is the default.
    pub(crate) fn choice(&mut self, name: &str, words: [&'static str; 2]) -> Choice {
        let example = format!("\"{}\"", words[1]);
        let value = self.value(name, &example)?;
        let word = string_of(&value).or_else(|| word_of(&value));
        if let Some(at) = word.as_deref().and_then(|word| words.iter().position(|valid| *valid == word)) {
            return (at == 1).then_some(words[1]);
        }
        let meant = word.and_then(|word| nearest(&word, &words)).unwrap_or(words[1]);
        let message = format!("`{name}` is \"{}\" or \"{}\"; write `{name} = \"{meant}\"`", words[0], words[1]);
        self.diagnostics.error(value, message);
        None
    }

    pub(crate) fn cache(&mut self) -> Option<Cache> {
        let value = self.value("cache", "[201, 409]")?;
        if is_word(&value, "all") {
            return Some(Cache::All);
        }
        let Expr::Array(list) = &value else {
            // A single status needs no brackets.
            return self.statuses(&value).map(|range| Cache::Statuses(vec![range]));
        };
        if list.elems.is_empty() {
            let message = "`cache` must name at least one status; write `cache = [201, 409]`, or remove the attribute";
            self.diagnostics.error(&value, message);
            return None;
        }
        let ranges: Vec<_> = list.elems.iter().map(|element| self.statuses(ungrouped(element))).collect();
        ranges.into_iter().collect::<Option<_>>().map(Cache::Statuses)
    }

    /// A status, a range or a class, as a range with both ends.
    fn statuses(&mut self, element: &Expr) -> Option<(u16, u16)> {
        const SHAPE: &str =
            "`cache` holds statuses such as `201`, ranges such as `200..=299` and classes such as `\"2xx\"`";
        match element {
            Expr::Range(range) => {
                let (Some(start), Some(end)) = (&range.start, &range.end) else {
                    self.diagnostics.error(element, "a range of statuses needs both ends; write `200..=299`");
                    return None;
                };
                let (start, end) = (self.status(start), self.range_end(end, &range.limits));
                let (start, end) = (start?, end?);
                if start > end {
                    self.diagnostics.error(element, "this range of statuses is empty; write `200..=299`");
                    return None;
                }
                Some((start, end))
            }
            Expr::Lit(literal) => match &literal.lit {
                Lit::Int(_) => self.status(element).map(|status| (status, status)),
                Lit::Str(class) => {
                    let class = class.value().to_ascii_lowercase();
                    let hundreds = ["2xx", "3xx", "4xx", "5xx"].iter().position(|valid| *valid == class);
                    let Some(hundreds) = hundreds.and_then(|at| u16::try_from(at + 2).ok()) else {
                        let message = class.parse::<u16>().map_or_else(
                            |_| "a class of statuses is \"2xx\", \"3xx\", \"4xx\" or \"5xx\"".to_owned(),
                            |status| format!("a status has no quotes; write `cache = [{status}]`"),
                        );
                        self.diagnostics.error(element, message);
                        return None;
                    };
                    Some((hundreds * 100, hundreds * 100 + 99))
                }
                _ => {
                    self.diagnostics.error(element, SHAPE);
                    None
                }
            },
            _ => {
                self.diagnostics.error(element, format!("{SHAPE}; `cache = all` records every response"));
                None
            }
        }
    }

    fn status(&mut self, expression: &Expr) -> Option<u16> {
        self.status_within(expression, 599)
    }

    fn range_end(&mut self, end: &Expr, limits: &syn::RangeLimits) -> Option<u16> {
        match limits {
            syn::RangeLimits::Closed(_) => self.status_within(end, 599),
            syn::RangeLimits::HalfOpen(_) => self.status_within(end, 600).map(|end| end - 1),
        }
    }

    fn status_within(&mut self, expression: &Expr, highest: u16) -> Option<u16> {
        let status = match ungrouped(expression) {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Int(number) => number.base10_parse::<u16>().ok(),
                _ => None,
            },
            _ => None,
        };
        // The end of a half-open range may be one more.
        match status {
            Some(status) if status == highest => Some(status),
            status => {
                let status = status.unwrap_or_default();
                let checked = idempotent_policy::check_status(status);
                checked.map_err(|wrong| self.diagnostics.error(expression, wrong)).ok().map(|()| status)
            }
        }
    }

    pub(crate) fn header(&mut self) -> Option<String> {
        let (text, at) = self.string("header", "x-request-id")?;
        self.header_name(&text, at)
    }

    pub(crate) fn headers(&mut self, name: &str, example: &str) -> Vec<String> {
        let Some(value) = self.value(name, &format!("[\"{example}\"]")) else { return Vec::new() };
        let Expr::Array(list) = &value else {
            self.diagnostics.error(value, format!("`{name}` must be a list; write `{name} = [\"{example}\"]`"));
            return Vec::new();
        };
        let mut names = Vec::new();
        for element in list.elems.iter().map(ungrouped) {
            let Some(text) = string_of(element) else {
                self.diagnostics.error(element, format!("`{name}` holds strings; write `{name} = [\"{example}\"]`"));
                continue;
            };
            let Some(header) = self.header_name(&text, element) else { continue };
            if name == "keep_headers"
                && let Err(wrong) = idempotent_policy::check_kept_header(&header)
            {
                self.diagnostics.error(element, wrong);
                continue;
            }
            names.push(header);
        }
        names
    }

    fn header_name(&mut self, name: &str, at: impl ToTokens) -> Option<String> {
        idempotent_policy::header_name(name).map_err(|wrong| self.diagnostics.error(at, wrong)).ok()
    }

    pub(crate) fn methods(&mut self) -> Option<Methods> {
        let value = self.value("methods", "[POST, PATCH]")?;
        if is_word(&value, "any") {
            return Some(Methods::Any);
        }
        let Expr::Array(list) = &value else {
            let message = "`methods` must be a list or `any`; write `methods = [POST, PATCH]`";
            self.diagnostics.error(value, message);
            return None;
        };
        if list.elems.is_empty() {
            self.diagnostics.error(&value, "`methods` must name at least one; write `methods = [POST, PATCH]`");
            return None;
        }
        let methods: Vec<_> = list.elems.iter().map(|element| self.method(ungrouped(element))).collect();
        methods.into_iter().collect::<Option<_>>().map(Methods::Only)
    }

    fn method(&mut self, element: &Expr) -> Option<&'static str> {
        let written = word_of(element).or_else(|| string_of(element));
        if let Some(method) = KNOWN_METHODS.iter().find(|method| Some(**method) == written.as_deref()) {
            return Some(method);
        }
        let meant = written.as_deref().and_then(|written| nearest(written, KNOWN_METHODS));
        let meant = meant.map(|meant| format!("; write `{meant}`")).unwrap_or_default();
        self.diagnostics.error(element, format!("unknown method{meant}\nthe methods are {}", listed(KNOWN_METHODS)));
        None
    }

    pub(crate) fn fingerprint(&mut self) -> Fingerprint {
        match self.value("fingerprint", "(&order.amount, &order.currency)") {
            None => Fingerprint::Request,
            Some(value) if is_word(&value, "none") => Fingerprint::None,
            Some(value) if is_word(&value, "json") => Fingerprint::Json,
            Some(value) if string_of(&value).is_some() => {
                let text = string_of(&value).unwrap_or_default();
                let meant = nearest(&text, &["json", "none"]).unwrap_or("json");
                let message = format!(
                    "`fingerprint` is `json`, `none` or an expression over the handler's arguments, and this is the same \
                     text for every request; write `fingerprint = {meant}` or the expression without quotes"
                );
                self.diagnostics.error(value, message);
                Fingerprint::Request
            }
            Some(value) if is_word(&value, "only") => {
                self.diagnostics.error(value, ONLY);
                Fingerprint::Request
            }
            Some(Expr::Call(call)) if is_word(&call.func, "only") => {
                let mut values = call.args.iter();
                if let (Some(value), None) = (values.next(), values.next()) {
                    return Fingerprint::Only(value.clone());
                }
                self.diagnostics.error(call, ONLY);
                Fingerprint::Request
            }
            Some(value) => Fingerprint::Expression(value),
        }
    }

    pub(crate) fn in_flight(&mut self) -> InFlight {
        self.wait().map_or(InFlight::Reject, InFlight::Wait)
    }

    fn wait(&mut self) -> Option<Duration> {
        let value = self.value("in_flight", "wait(\"5s\")")?;
        if is_word(&value, "reject") {
            return None;
        }
        if let Expr::Call(call) = &value
            && is_word(&call.func, "wait")
            && let (Some(limit), 1) = (call.args.first(), call.args.len())
            && let Some(text) = string_of(limit)
        {
            return self.duration_in("wait", &text, limit, "in_flight = wait(\"5s\")", SHORTEST_WAIT);
        }
        self.diagnostics.error(value, "`in_flight` is `reject` or `wait(…)`; write `in_flight = wait(\"5s\")`");
        None
    }

    pub(crate) fn isolation(&mut self) -> Option<Isolation> {
        const WORDS: [&str; 2] = ["serializable", "repeatable_read"];
        let value = self.value("isolation", "\"serializable\"")?;
        let word = string_of(&value).or_else(|| word_of(&value));
        match word.as_deref() {
            Some("serializable") => Some(Isolation::Serializable),
            Some("repeatable_read") => Some(Isolation::RepeatableRead),
            _ => {
                let meant = word.and_then(|word| nearest(&word, &WORDS)).unwrap_or(WORDS[0]);
                let message = format!(
                    "`isolation` is \"serializable\" or \"repeatable_read\"; write `isolation = \"{meant}\"`, or remove it \
                     for the database's default"
                );
                self.diagnostics.error(value, message);
                None
            }
        }
    }

    pub(crate) fn runtime(&mut self) -> Runtime {
        const EXAMPLE: &str = "idem";
        let Some((text, at)) = self.string("crate", EXAMPLE) else { return Runtime::of_manifest() };
        // With the span of the string, where a path that leads nowhere is reported.
        let path = LitStr::new(&text, at.span()).parse_with(Path::parse_mod_style);
        let Ok(path) = path else {
            let message = format!("`crate` must be a path to the runtime; write `crate = \"{EXAMPLE}\"`");
            self.diagnostics.error(at, message);
            return Runtime::of_manifest();
        };
        Runtime::at_path(&path)
    }

    pub(crate) fn max_body(&mut self) -> Option<usize> {
        let (text, at) = self.string("max_body", "4MiB")?;
        size_in_bytes(&text)
            .map_err(|reason| {
                self.diagnostics.error(at, format!("`max_body` is no size: {reason}; write `max_body = \"4MiB\"`"));
            })
            .ok()
    }
}

/// The value without the invisible group that a `macro_rules!` puts around its `$value:expr`.
fn ungrouped(mut value: &Expr) -> &Expr {
    while let Expr::Group(group) = value {
        value = &group.expr;
    }
    value
}

pub(crate) fn string_of(value: &Expr) -> Option<String> {
    match ungrouped(value) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

fn word_of(value: &Expr) -> Option<String> {
    match ungrouped(value) {
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
        _ => None,
    }
}

/// A word of ours, bare or quoted.
fn is_word(value: &Expr, word: &str) -> bool {
    word_of(value).or_else(|| string_of(value)).as_deref() == Some(word)
}
