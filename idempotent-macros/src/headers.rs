//! Reads the names of headers: `header`, `keep_headers` and `drop_headers`.

use quote::ToTokens;
use syn::Expr;

use crate::reader::{Reader, string_of, ungrouped};

impl Reader<'_> {
    pub(crate) fn header(&mut self) -> Option<String> {
        let (text, at) = self.string("header", "x-request-id")?;
        let name = self.header_name(&text, &at)?;
        let checked = idempotent_policy::check_key_header(&name);
        checked.map_err(|wrong| self.diagnostics.error(at, wrong)).ok().map(|()| name)
    }

    pub(crate) fn keep_headers(&mut self) -> Vec<String> {
        self.headers("keep_headers", "set-cookie", idempotent_policy::check_kept_header)
    }

    pub(crate) fn drop_headers(&mut self) -> Vec<String> {
        self.headers("drop_headers", "x-trace", idempotent_policy::check_dropped_header)
    }

    fn headers(&mut self, name: &str, example: &str, check: fn(&str) -> Result<(), String>) -> Vec<String> {
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
            match check(&header) {
                Ok(()) => names.push(header),
                Err(wrong) => self.diagnostics.error(element, wrong),
            }
        }
        names
    }

    fn header_name(&mut self, name: &str, at: impl ToTokens) -> Option<String> {
        idempotent_policy::header_name(name).map_err(|wrong| self.diagnostics.error(at, wrong)).ok()
    }
}
