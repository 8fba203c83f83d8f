//! A constant in place of a literal: the compiler evaluates and checks its value.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Expr, Lit};

use crate::runtime::Runtime;

/// The value of an argument.
pub(crate) enum Value<T> {
    /// A literal that was already read and checked.
    Literal(T),
    Constant(Constant),
}

/// The requirements for the constant: a description for people, its type, and the runtime's function that checks it.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    must_be: &'static str,
    ty: fn() -> TokenStream,
    check: Option<&'static str>,
    /// The method of `PolicyOverride` that replaces the value at start-up.
    setter: Option<&'static str>,
}

impl Kind {
    pub(crate) const SCOPE: Self = Self { must_be: A_NAME, ty: text, check: Some("constant_scope"), setter: None };
    pub(crate) const STORE: Self = Self { must_be: A_NAME, ty: text, check: Some("constant_store"), setter: None };
    pub(crate) const TTL: Self = Self::duration("constant_ttl", "ttl");
    pub(crate) const LEASE: Self = Self::duration("constant_lease", "lease");
    pub(crate) const WAIT: Self = Self::duration("constant_wait", "wait");
    pub(crate) const MAX_BODY: Self =
        Self { must_be: "must be a string or a constant `usize`", ty: size, check: None, setter: Some("max_body") };

    const fn duration(check: &'static str, setter: &'static str) -> Self {
        Self { must_be: A_DURATION, ty: duration, check: Some(check), setter: Some(setter) }
    }

    /// Returns a text that says what to write instead, and, if possible, how the program replaces the value at start-up
    /// for the handlers with this scope.
    fn remedy(self, example: &str, scope: &str) -> String {
        let write = format!("write `{example}`");
        self.setter.map_or(write.clone(), |setter| {
            let set = format!("Registry::builder(store).policy({scope}, |policy| policy.{setter}({setter}))");
            format!("{write}, which `{set}` can replace at start-up")
        })
    }
}

const A_NAME: &str = "must be a string or a constant `&str`";
const A_DURATION: &str = "must be a string or a constant `Duration`";

fn text() -> TokenStream {
    quote!(&'static ::core::primitive::str)
}

fn duration() -> TokenStream {
    quote!(::core::time::Duration)
}

fn size() -> TokenStream {
    quote!(::core::primitive::usize)
}

pub(crate) struct Constant {
    kind: Kind,
    expression: Box<Expr>,
}

/// Returns the expression as a constant, or its mistake as the end of a sentence that begins with the argument. A word
/// in lower case is not the name of a constant, but a text without quotes, or a variable.
pub(crate) fn constant(kind: Kind, expression: &Expr, example: &str, scope: &str) -> Result<Constant, String> {
    let is_word = match expression {
        Expr::Path(path) => {
            path.path.get_ident().is_some_and(|ident| !ident.to_string().contains(|char: char| char.is_uppercase()))
        }
        _ => false,
    };
    let is_literal = matches!(expression, Expr::Lit(literal) if !matches!(literal.lit, Lit::Verbatim(_)));
    if is_word || is_literal {
        let write = if is_word { kind.remedy(example, scope) } else { format!("write `{example}`") };
        return Err(format!("{}; {write}", kind.must_be));
    }
    if mentions_self(expression.to_token_stream()) {
        return Err(format!("is one value for all types; name the type instead of `Self`, or write `{example}`"));
    }
    if is_of_run_time(expression) {
        return Err(format!("must be known when the program is compiled; {}", kind.remedy(example, scope)));
    }
    Ok(Constant { kind, expression: Box::new(expression.clone()) })
}

fn mentions_self(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "Self",
        TokenTree::Group(group) => mentions_self(group.stream()),
        _ => false,
    })
}

/// Returns whether the compiler certainly cannot evaluate the expression. For a function call, only the compiler knows.
fn is_of_run_time(expression: &Expr) -> bool {
    struct OfRunTime(bool);
    impl<'ast> Visit<'ast> for OfRunTime {
        fn visit_expr(&mut self, expression: &'ast Expr) {
            self.0 |= match expression {
                Expr::Await(_) | Expr::Try(_) => true,
                Expr::Path(path) => {
                    let segments: Vec<String> = path.path.segments.iter().map(|it| it.ident.to_string()).collect();
                    ["std::env::var", "std::env::var_os", "env::var", "env::var_os"].contains(&&*segments.join("::"))
                }
                _ => false,
            };
            visit::visit_expr(self, expression);
        }
    }
    let mut found = OfRunTime(false);
    found.visit_expr(expression);
    found.0
}

impl<T> Value<T> {
    pub(crate) fn constant(&self) -> Option<&Constant> {
        if let Self::Constant(constant) = self { Some(constant) } else { None }
    }

    pub(crate) fn tokens(&self, private: &Runtime, literal: impl FnOnce(&T) -> TokenStream) -> TokenStream {
        match self {
            Self::Literal(value) => literal(value),
            Self::Constant(constant) => constant.checked(private),
        }
    }
}

impl Constant {
    pub(crate) fn span(&self) -> Span {
        self.expression.span().resolved_at(Span::mixed_site())
    }

    pub(crate) fn expression(&self) -> &Expr {
        &self.expression
    }

    /// Returns the checked value, located at the expression, so that the compiler reports a mistake there.
    pub(crate) fn checked(&self, private: &Runtime) -> TokenStream {
        let Self { kind, expression } = self;
        let span = self.span();
        let (ty, private) = ((kind.ty)(), private.located(span));
        let value = quote_spanned!(span=> { const __IDEMPOTENT_VALUE: #ty = #expression; __IDEMPOTENT_VALUE });
        kind.check
            .map(|check| Ident::new(check, span))
            .map_or(value.clone(), |check| quote_spanned!(span=> #private::#check(#value)))
    }
}
