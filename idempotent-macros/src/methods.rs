//! Reads the names of `methods`.

use idempotent_policy::KNOWN_METHODS;
use syn::Expr;

use crate::diagnostics::nearest;
use crate::reader::{Reader, is_word, string_of, ungrouped, word_of};
use crate::values::Methods;

impl Reader<'_> {
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

    /// Reads a method. A word that is nearly a known method is a mistake. In quotes, it is a method with that name.
    fn method(&mut self, element: &Expr) -> Option<String> {
        let quoted = string_of(element);
        let Some(name) = word_of(element).or_else(|| quoted.clone()) else {
            self.diagnostics.error(element, "`methods` holds methods; write `methods = [POST, PATCH]`");
            return None;
        };
        if let Err(wrong) = idempotent_policy::check_method(&name) {
            self.diagnostics.error(element, wrong);
            return None;
        }
        if let Some(meant) = nearest(&name, KNOWN_METHODS).filter(|meant| quoted.is_none() && *meant != name) {
            let message = format!("unknown method; write `{meant}`, or `\"{name}\"` for a method of that name");
            self.diagnostics.error(element, message);
            return None;
        }
        Some(name)
    }
}
