//! A constant in place of a literal: the compiler evaluates and checks it.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Expr, Lit};

use crate::runtime::Runtime;

/// The value of an argument.
pub(crate) enum Value<T> {
    /// Read and checked already.
    Literal(T),
    Constant(Constant),
}

/// What the constant must be: the words for people, its type, and the runtime's function that checks it.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    must_be: &'static str,
    ty: fn() -> TokenStream,
    check: Option<&'static str>,
}

impl Kind {
    pub(crate) const SCOPE: Self = Self { must_be: A_NAME, ty: text, check: Some("constant_scope") };
    pub(crate) const STORE: Self = Self { must_be: A_NAME, ty: text, check: Some("constant_store") };
    pub(crate) const TTL: Self = Self { must_be: A_DURATION, ty: duration, check: Some("constant_ttl") };
    pub(crate) const LEASE: Self = Self { must_be: A_DURATION, ty: duration, check: Some("constant_lease") };
    pub(crate) const WAIT: Self = Self { must_be: A_DURATION, ty: duration, check: Some("constant_wait") };
    pub(crate) const MAX_BODY: Self = Self { must_be: "must be a string or a constant `usize`", ty: size, check: None };
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

/// The expression as a constant, or what is wrong with it, as the end of a sentence that begins with the argument. A word in
/// lower case is no constant's name, but a text without its quotes.
pub(crate) fn constant(kind: Kind, expression: &Expr, example: &str) -> Result<Constant, String> {
    let is_word = match expression {
        Expr::Path(path) => {
            path.path.get_ident().is_some_and(|ident| !ident.to_string().contains(|char: char| char.is_uppercase()))
        }
        _ => false,
    };
    let is_literal = matches!(expression, Expr::Lit(literal) if !matches!(literal.lit, Lit::Verbatim(_)));
    if is_word || is_literal {
        return Err(format!("{}; write `{example}`", kind.must_be));
    }
    if mentions_self(expression.to_token_stream()) {
        return Err(format!("is one value for all types; name the type instead of `Self`, or write `{example}`"));
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

    /// The checked value, located at the expression, where the compiler then reports what is wrong.
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
