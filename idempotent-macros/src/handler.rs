//! The function under the attribute: its signature, and its body as tokens.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{ParseStream, Parser};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, FnArg, Ident, Item, Lifetime, ParenthesizedGenericArguments, PatType, Safety, Signature,
    TraitBound, TypeFnPtr, TypeReference, Visibility,
};

use crate::claim_line::{mentions, variables};
use crate::diagnostics::Diagnostics;
use crate::presence::condition;

/// An `async fn`. The body stays as it was written, so that code that is still being typed works in an editor.
pub(crate) struct Handler {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    pub(crate) body: Group,
}

/// The number of extractors up to which axum implements its `Handler`.
const MOST_ARGUMENTS: usize = 16;

impl Handler {
    /// Parses the function. If the item is not a function, returns an error that says so.
    pub(crate) fn parse(item: TokenStream) -> syn::Result<Self> {
        let whole = item.clone();
        Parser::parse2(Self::parse_function, item).map_err(|error| not_a_function(whole).unwrap_or(error))
    }

    fn parse_function(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let visibility = input.parse()?;
        let signature = input.parse()?;
        let body = match unwrapped(input.parse()?) {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => group,
            other => {
                let message =
                    "`#[idempotent]` needs the handler's body; a function of a trait or an `extern` block has none";
                return Err(syn::Error::new(other.span(), message));
            }
        };
        Ok(Self { attributes, visibility, signature, body })
    }

    pub(crate) fn check(&self, diagnostics: &mut Diagnostics) {
        let signature = &self.signature;
        if let Some(second) = self.attributes.iter().find(|attribute| is_ours(attribute)) {
            diagnostics.error(second, "a handler has one policy; keep one `#[idempotent]`");
        }
        if let Some(token) = &signature.constness {
            diagnostics.error(token, "a handler cannot be `const`; remove the word");
        }
        if signature.asyncness.is_none() {
            diagnostics.error(signature.fn_token, "a handler must be async; write `async fn`");
        }
        if let Safety::Unsafe(token) = &signature.safety {
            diagnostics.error(token, "a handler cannot be `unsafe`; wrap the unsafe part of its body in a block");
        }
        if let Some(abi) = &signature.abi {
            diagnostics.error(abi, "a handler cannot be `extern`; remove the ABI");
        }
        if let Some(receiver) = signature.receiver() {
            diagnostics
                .error(receiver, "a handler has no `self`, since axum calls it without one; take `State(…)` instead");
        }
        if let Some(variadic) = &signature.variadic {
            diagnostics.error(variadic, "a handler cannot be variadic; name its arguments");
        }
        if let Some(surplus) = signature.inputs.iter().nth(MOST_ARGUMENTS) {
            diagnostics.error(
                surplus,
                format!(
                    "a handler has at most {MOST_ARGUMENTS} arguments; put several extractors into one tuple or struct"
                ),
            );
        }
        self.arguments().for_each(|argument| check_owned(argument, diagnostics));
        if let Some(conditional) =
            self.arguments().last().and_then(|last| last.attrs.iter().find(|attribute| condition(attribute).is_some()))
        {
            diagnostics.error(
                conditional,
                "the last argument carries the guard and cannot be compiled out; put `#[cfg]` on the function",
            );
        }
    }

    /// Returns the arguments. [`Handler::check`] has rejected a `self` among them.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &PatType> {
        self.signature.inputs.iter().filter_map(|argument| match argument {
            FnArg::Typed(typed) => Some(typed),
            FnArg::Receiver(_) => None,
        })
    }

    /// Returns whether the type of an argument mentions a `Tx`.
    pub(crate) fn names_a_transaction(&self) -> bool {
        fn mentions(tokens: TokenStream) -> bool {
            tokens.into_iter().any(|token| match token {
                TokenTree::Ident(ident) => ident == "Tx",
                TokenTree::Group(group) => mentions(group.stream()),
                _ => false,
            })
        }
        self.arguments().any(|argument| mentions(argument.ty.to_token_stream()))
    }

    /// Returns whether an argument binds this variable.
    pub(crate) fn binds(&self, variable: &Ident) -> bool {
        self.arguments().any(|argument| variables(&argument.pat).contains(variable))
    }

    /// Returns whether the expression mentions a variable that an argument binds.
    pub(crate) fn binds_any_of(&self, expression: &Expr) -> bool {
        self.arguments().flat_map(|argument| variables(&argument.pat)).any(|variable| mentions(expression, &variable))
    }

    /// Returns whether axum's `debug_handler` will see the function.
    pub(crate) fn is_under_debug_handler(&self) -> bool {
        self.attributes.iter().any(is_debug_handler)
    }

    /// Returns whether the function has another attribute macro that is not yet expanded.
    pub(crate) fn has_other_macros(&self) -> bool {
        self.attributes.iter().any(|attribute| !is_inert(attribute))
    }

    /// Returns whether the function has an attribute macro other than axum's `debug_handler`.
    pub(crate) fn has_macros_but_debug_handler(&self) -> bool {
        self.attributes.iter().any(|attribute| !is_inert(attribute) && !is_debug_handler(attribute))
    }
}

impl ToTokens for Handler {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        self.attributes.iter().for_each(|attribute| attribute.to_tokens(tokens));
        self.visibility.to_tokens(tokens);
        self.signature.to_tokens(tokens);
        self.body.to_tokens(tokens);
    }
}

/// Removes the group without delimiters that a macro puts around a fragment such as `$body:block`.
fn unwrapped(token: TokenTree) -> TokenTree {
    if let TokenTree::Group(group) = &token
        && group.delimiter() == Delimiter::None
        && let [inner] = &group.stream().into_iter().collect::<Vec<_>>()[..]
    {
        return unwrapped(inner.clone());
    }
    token
}

/// Rejects borrowed types, because the future of a handler may outlive the request, and is boxed for that.
fn check_owned(argument: &PatType, diagnostics: &mut Diagnostics) {
    let mut borrows = Borrows { first: None };
    borrows.visit_type(&argument.ty);
    if let Some(at) = borrows.first {
        let message =
            "a handler owns its arguments, since it may outlive the request; take an owned type such as `String`";
        diagnostics.error(at, message);
    }
}

/// Finds the first lifetime that is neither `'static` nor bound within the type itself.
struct Borrows {
    first: Option<TokenStream>,
}

impl<'ast> Visit<'ast> for Borrows {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        if reference.lifetime.is_none() {
            self.first.get_or_insert_with(|| reference.and_token.to_token_stream());
        }
        visit::visit_type_reference(self, reference);
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" {
            self.first.get_or_insert_with(|| lifetime.to_token_stream());
        }
    }

    // Function types bind the lifetimes that they elide or name.
    fn visit_type_fn_ptr(&mut self, _: &'ast TypeFnPtr) {}

    fn visit_parenthesized_generic_arguments(&mut self, _: &'ast ParenthesizedGenericArguments) {}

    fn visit_trait_bound(&mut self, bound: &'ast TraitBound) {
        if bound.lifetimes.is_none() {
            visit::visit_trait_bound(self, bound);
        }
    }
}

pub(crate) fn is_debug_handler(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "debug_handler")
}

fn is_ours(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "idempotent")
}

/// Attributes that the compiler or a tool reads and that expand to nothing.
const INERT: [&str; 18] = [
    "allow",
    "automatically_derived",
    "cfg",
    "cold",
    "deny",
    "deprecated",
    "doc",
    "expect",
    "export_name",
    "forbid",
    "inline",
    "link_section",
    "must_use",
    "no_mangle",
    "optimize",
    "target_feature",
    "track_caller",
    "warn",
];

const TOOLS: [&str; 5] = ["clippy", "diagnostic", "miri", "rust_analyzer", "rustfmt"];

fn is_inert(attribute: &Attribute) -> bool {
    let path = attribute.path();
    let Some(first) = path.segments.first() else { return true };
    let names: &[&str] = if path.segments.len() == 1 { &INERT } else { &TOOLS };
    names.iter().any(|name| first.ident == name)
}

fn not_a_function(item: TokenStream) -> Option<syn::Error> {
    let item: Item = syn::parse2(item).ok()?;
    let (found, at) = match &item {
        // A function without a body is not one of the known items.
        Item::Fn(_) | Item::Verbatim(_) => return None,
        Item::Const(item) => ("a constant", item.const_token.span()),
        Item::Static(item) => ("a static", item.static_token.span()),
        Item::Struct(item) => ("a struct", item.struct_token.span()),
        Item::Enum(item) => ("an enum", item.enum_token.span()),
        Item::Impl(item) => ("an impl block", item.impl_token.span()),
        Item::Mod(item) => ("a module", item.mod_token.span()),
        Item::Trait(item) => ("a trait", item.trait_token.span()),
        Item::Type(item) => ("a type alias", item.type_token.span()),
        Item::Union(item) => ("a union", item.union_token.span()),
        Item::Use(item) => ("an import", item.use_token.span()),
        Item::ForeignMod(item) => ("an extern block", item.abi.extern_token.span()),
        Item::Macro(item) => ("a macro call", item.mac.path.span()),
        other => ("something else", other.span()),
    };
    Some(syn::Error::new(at, format!("`#[idempotent]` goes on a handler, an `async fn`; this is {found}")))
}
