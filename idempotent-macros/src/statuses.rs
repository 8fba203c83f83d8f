//! Reads the statuses of `cache`.

use syn::{Expr, Lit};

use crate::reader::{Reader, is_word, ungrouped};
use crate::values::Cache;

impl Reader<'_> {
    pub(crate) fn cache(&mut self) -> Option<Cache> {
        let value = self.value("cache", "[201, 409]")?;
        if is_word(&value, "all") {
            return Some(Cache::All);
        }
        let Expr::Array(list) = &value else {
            // A single status needs no brackets.
            return self.statuses(&value).map(|range| Cache::Statuses(vec![range]));
        };
        if let Err(wrong) = idempotent_policy::check_count(list.elems.len()) {
            let message = format!("`cache` {wrong}; write `cache = [201, 409]`, or remove the attribute");
            self.diagnostics.error(&value, message);
            return None;
        }
        let ranges: Vec<_> = list.elems.iter().map(|element| self.statuses(ungrouped(element))).collect();
        ranges.into_iter().collect::<Option<_>>().map(Cache::Statuses)
    }

    /// Reads a status, a range or a class, as a range with both ends.
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
                    self.diagnostics.error(element, format!("{SHAPE}; write `cache = [201]`, or remove the argument"));
                    None
                }
            },
            Expr::Path(path) if path.path.segments.iter().any(|segment| segment.ident == "StatusCode") => {
                self.diagnostics.error(element, format!("{SHAPE}; write the number, such as `201`"));
                None
            }
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
        // The end of a half-open range may be greater by one.
        match status {
            Some(status) if status == highest => Some(status),
            status => {
                let status = status.unwrap_or_default();
                let checked = idempotent_policy::check_status(status);
                checked.map_err(|wrong| self.diagnostics.error(expression, wrong)).ok().map(|()| status)
            }
        }
    }
}
