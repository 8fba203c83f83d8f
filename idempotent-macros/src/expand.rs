//! The handler's new form.
//!
//! ```text
//! // Input:
//! async fn pay(user: User, Json(order): Json<Order>) -> R { .. }
//! // Output:
//! fn pay(user: User, last: Guarded<Json<Order>>) -> Completion {
//!     let (gate, last) = open(&POLICY, last);
//!     gate.run(async move { let user = user; let Json(order) = last; .. }, into_response)
//! }
//! ```

use proc_macro2::{Delimiter, Group, Ident, Punct, Spacing, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    FnArg, GenericArgument, Generics, Lifetime, Pat, PatType, PathArguments, PathSegment, ReturnType, Signature, Token,
    Type, TypeParamBound, Visibility,
};

use crate::args::LAST;
use crate::document;
use crate::handler::Handler;
use crate::model::{Fingerprint, Model};
use crate::presence::presence;
use crate::runtime::Runtime;
use crate::settings;

/// The function untouched, with this attribute behind all others, so that they see what the user wrote.
pub(crate) fn behind_the_others(handler: &Handler, model: &Model, arguments: &TokenStream) -> TokenStream {
    let Handler { attributes, visibility, signature, body } = handler;
    let (last, private) = (Ident::new(LAST, Span::call_site()), &model.runtime);
    let mut signature = signature.clone();
    if signature.inputs.is_empty() && handler.is_under_debug_handler() {
        // It calls the function with as many arguments as it sees.
        signature.inputs.push(syn::parse_quote!(_: ()));
    }
    quote! {
        #(#attributes)*
        #[#private::idempotent(#last, #arguments)]
        #visibility #signature #body
    }
}

pub(crate) fn expand(handler: &Handler, model: &Model) -> TokenStream {
    let Handler { attributes, visibility, signature, body } = handler;
    let arguments: Vec<&PatType> = handler.arguments().collect();
    let names = names(&arguments);
    let (gate, pending, private) = (local("gate"), local("pending"), &model.runtime);
    let last = names.last().expect("there is at least one");

    let mut guarded = signature.clone();
    guarded.asyncness = None;
    guarded.inputs = guarded_inputs(signature, &arguments, &names, model);
    // With the user's span: a signature that ends in ours would be foreign code to `dead_code` and other lints.
    let span = signature.ident.span();
    let completion = private.located(span);
    guarded.output = syn::parse_quote_spanned!(span=> -> #completion::Completion);

    let policy = policy(signature, &arguments, model);
    let document = document::operation(signature, private);
    let bindings = bindings(&arguments, &names);
    let expressions = policy_expressions(model);
    // Its expressions see the handler's variables, which are in the handler's future alone.
    let (lend, expressions, runner) = if expressions.is_empty() {
        (TokenStream::new(), expressions, &gate)
    } else {
        (quote!(let (mut #gate, #pending) = #gate.lend();), quote!(#expressions #gate.give_back().await;), &pending)
    };
    let never_returned = never_returned(signature, private);
    let block = inner_block(body);
    // Located at the name, so that a future that is not `Send` is reported there.
    let run = Ident::new("run", signature.ident.span().resolved_at(Span::mixed_site()));
    // Located at the body, which is what its errors are about.
    let future = quote_spanned!(body.span().resolved_at(Span::mixed_site())=> async move {
        #bindings
        if false {
            #never_returned
        }
        #expressions
        #block
    });
    // Located at the return type, so that one that is no response is reported there.
    let span = match &signature.output {
        ReturnType::Default => Span::mixed_site(),
        ReturnType::Type(_, declared) => declared.span().resolved_at(Span::mixed_site()),
    };
    let at_return = private.located(span);
    let into_response = quote_spanned!(span=> #at_return::into_response);
    let guarded_body = quote! {
        #policy
        #document
        let (#gate, #last) = #private::open(&__IDEMPOTENT_POLICY, #last);
        #lend
        #runner.#run(#future, #into_response)
    };
    let mut guarded_body = Group::new(Delimiter::Brace, guarded_body);
    guarded_body.set_span(body.span());
    let lints = lints(handler);
    quote! { #lints #(#attributes)* #visibility #guarded #guarded_body }
}

/// Lints that the expansion triggers and that the handler's author cannot fix. As few as possible: a crate that forbids a lint
/// cannot allow it.
fn lints(Handler { attributes, visibility, .. }: &Handler) -> TokenStream {
    let must_be_used = attributes.iter().any(|attribute| attribute.path().is_ident("must_use"));
    let double_must_use = must_be_used.then(|| quote!(#[allow(clippy::double_must_use)]));
    // For a method of a trait that says `async fn`.
    let refining = matches!(visibility, Visibility::Inherited).then(|| quote!(#[allow(refining_impl_trait)]));
    quote! { #refining #double_must_use }
}

/// One for each argument, and for that of a handler without any: located there, so that errors of its type are too.
fn names(arguments: &[&PatType]) -> Vec<Ident> {
    let named = |(index, argument): (usize, &&PatType)| {
        let mut name = local(&index.to_string());
        name.set_span(argument.span().resolved_at(Span::mixed_site()));
        name
    };
    if arguments.is_empty() { vec![local("0")] } else { arguments.iter().enumerate().map(named).collect() }
}

/// A variable that the user's code cannot meet.
fn local(name: &str) -> Ident {
    format_ident!("__idempotent_{name}", span = Span::mixed_site())
}

fn guarded_inputs(
    signature: &Signature,
    arguments: &[&PatType],
    names: &[Ident],
    model: &Model,
) -> Punctuated<FnArg, Token![,]> {
    let private = &model.runtime;
    let mode = match model.fingerprint {
        Fingerprint::Request => quote!(#private::Buffered),
        Fingerprint::Json => quote!(#private::BufferedJson),
        Fingerprint::Expression(_) => quote!(#private::Targeted),
        Fingerprint::None | Fingerprint::Only(_) => quote!(#private::Streamed),
    };
    let mode = if model.header.is_none() && model.key.is_none() { mode } else { quote!(#private::KeyElsewhere<#mode>) };
    let mode = document::mode(signature, model, &mode);
    let Some((last, others)) = arguments.split_last() else {
        let name = &names[0];
        return syn::parse_quote!(#name: #private::Guarded<(), #mode>);
    };
    let attributes = others.iter().map(|argument| presence(argument));
    let types = others.iter().map(|argument| &argument.ty);
    let last_type = &last.ty;
    let (last_name, other_names) = names.split_last().expect("there is at least one");
    syn::parse_quote! {
        #(#attributes #other_names: #types,)*
        #last_name: #private::Guarded<#last_type, #mode>
    }
}

/// The handler's own variables. Each argument first moves in whole, so that an unused one lives as long as the handler and
/// all are dropped in the order of a plain function.
fn bindings(arguments: &[&PatType], names: &[Ident]) -> TokenStream {
    if arguments.is_empty() {
        return quote! { #(let #names = #names;)* };
    }
    let each = arguments.iter().zip(names).map(|(argument, name)| {
        let (pattern, attributes, presence) = (&argument.pat, &argument.attrs, presence(argument));
        // Where it looks unused, `clippy::no_effect_underscore_binding` would call the plain one pointless.
        let is_underscored = matches!(&**pattern, Pat::Ident(variable) if variable.ident.to_string().starts_with('_'));
        let binding = if is_underscored { quote!((#pattern,) = (#name,)) } else { quote!(#pattern = #name) };
        quote! {
            #presence let #name = #name;
            #(#attributes)* let #binding;
        }
    });
    quote! { #(#each)* }
}

/// The name of the function, as paths have it.
pub(crate) fn name(signature: &Signature) -> String {
    signature.ident.unraw().to_string()
}

fn policy(signature: &Signature, arguments: &[&PatType], model: &Model) -> TokenStream {
    let function = name(signature);
    let settings = settings::literal(model, &function);
    let transactions = arguments.iter().filter_map(|argument| transaction(argument, &signature.generics));
    let private = &model.runtime;
    quote! {
        #private::policy! { __IDEMPOTENT_POLICY #function [#(#transactions),*] #settings }
    }
}

/// What the type of a transaction's database is called.
const DATABASES: [&str; 2] = ["Postgres", "Sqlite"];

/// The type of an argument that looks like a `Tx`. A static cannot ask for one that depends on generics, of the function or of
/// its `impl` block, which no attribute sees; nor for one that may be compiled out. It is asked when it is used.
fn transaction<'a>(argument: &'a PatType, generics: &Generics) -> Option<&'a Type> {
    let is_named_like = |ty: &Type| match last_segment(ty) {
        Some(segment) => DATABASES.iter().any(|database| segment.ident == database),
        None => false,
    };
    let segment = last_segment(&argument.ty).filter(|segment| segment.ident == "Tx")?;
    let is_concrete = match &segment.arguments {
        PathArguments::None => generics.type_params().all(|parameter| parameter.ident != segment.ident),
        PathArguments::AngleBracketed(arguments) => match (arguments.args.first(), arguments.args.len()) {
            (Some(GenericArgument::Type(database)), 1) => is_named_like(database),
            _ => false,
        },
        PathArguments::Parenthesized(_) => false,
    };
    (is_concrete && presence(argument).is_empty()).then_some(&argument.ty)
}

fn last_segment(ty: &Type) -> Option<&PathSegment> {
    if let Type::Path(path) = written(ty) { path.path.segments.last() } else { None }
}

/// Without what a macro or its author has put around it.
fn written(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => written(&group.elem),
        Type::Paren(paren) => written(&paren.elem),
        ty => ty,
    }
}

/// What the policy asks of the handler's own variables, the key first: the others only count for a keyed request.
fn policy_expressions(model: &Model) -> TokenStream {
    let mut expressions = TokenStream::new();
    let mut ask = |method: &str, expression: &syn::Expr, by_reference: bool| {
        // Located at the expression, so that a type that does not fit is reported there.
        let span = expression.span().resolved_at(Span::mixed_site());
        let method = Ident::new(method, span);
        let mut gate = local("gate");
        gate.set_span(span);
        let argument = if by_reference { quote_spanned!(span=> &(#expression)) } else { expression.to_token_stream() };
        // By its path: a trait of the user's may have a method of this name for every type.
        let private = model.runtime.located(span);
        let method = quote_spanned!(span=> #private::Gate::#method);
        expressions.extend(quote_spanned!(span=> #method(&mut #gate, #argument);));
    };
    if let Some(key) = &model.key {
        ask("key", key, true);
    }
    if let Some(caller) = &model.caller {
        ask("caller", caller, true);
    }
    if let Fingerprint::Expression(value) | Fingerprint::Only(value) = &model.fingerprint {
        ask("fingerprint", value, true);
    }
    if let Some(predicate) = &model.cache_if {
        ask("cache_if", predicate, false);
    }
    expressions
}

/// The body as the last expression of a generated block. `unused_braces` would call its braces unnecessary where there is
/// one expression in them, and an empty statement keeps it from that. Other braces than the user's would do so too, but
/// temporaries of an older edition would then be dropped as ours has it.
fn inner_block(body: &Group) -> Group {
    let statements = body.stream();
    let mut first_two = statements.clone().into_iter();
    let is_punct =
        |token: Option<TokenTree>, char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == char);
    if is_punct(first_two.next(), '#') && is_punct(first_two.next(), '!') {
        // Inner attributes must stay first, and the lint passes over a block that has some.
        return body.clone();
    }
    let mut semicolon = Punct::new(';', Spacing::Alone);
    semicolon.set_span(Span::mixed_site());
    let mut block = Group::new(Delimiter::Brace, quote! { #semicolon #statements });
    block.set_span(body.span());
    block
}

/// A `return` of the declared type that is never taken makes inference and errors those of the function as it was written.
fn never_returned(signature: &Signature, private: &Runtime) -> TokenStream {
    let ReturnType::Type(_, declared) = &signature.output else {
        return never(&quote!(()), Span::mixed_site(), private);
    };
    // Located there, since that is where the body's type comes from.
    let span = declared.span().resolved_at(Span::mixed_site());
    let mut opaque = OpaqueTypes { named: Vec::new(), can_be_named: signature.generics.params.is_empty() };
    let mut inferred = (**declared).clone();
    opaque.visit_type_mut(&mut inferred);
    if !opaque.can_be_named {
        let mut inferred = (**declared).clone();
        InferOpaqueTypes.visit_type_mut(&mut inferred);
        return never(&inferred, span, private);
    }
    if opaque.named.is_empty() {
        return never(&inferred, span, private);
    }
    let (names, bounds): (Vec<_>, Vec<_>) = opaque.named.into_iter().unzip();
    quote! {
        fn __idempotent_declared<#(#names: #bounds),*>() -> #inferred {
            #private::never()
        }
        return __idempotent_declared();
    }
}

fn never(ty: &impl ToTokens, span: Span, private: &Runtime) -> TokenStream {
    let private = private.located(span);
    quote_spanned! {span=> return #private::never::<#ty>(); }
}

/// Turns each `impl Trait` into a type parameter with its bounds: `impl Stream<Item = Result<Event, Infallible>>` says
/// what the error of the items is, which the body may leave to be inferred.
struct OpaqueTypes {
    named: Vec<(Ident, Punctuated<TypeParamBound, Token![+]>)>,
    /// A nested function sees neither the handler's generics nor its `Self`, and a parameter captures nothing.
    can_be_named: bool,
}

impl VisitMut for OpaqueTypes {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        // The inner ones first: they are parameters of the outer one's bounds.
        visit_mut::visit_type_mut(self, ty);
        if let Type::ImplTrait(opaque) = ty {
            self.can_be_named &= opaque.bounds.iter().all(|bound| matches!(bound, TypeParamBound::Trait(_)));
            let name = format_ident!("__IdempotentOpaque{}", self.named.len());
            self.named.push((name.clone(), opaque.bounds.clone()));
            *ty = syn::parse_quote!(#name);
        }
    }

    fn visit_ident_mut(&mut self, ident: &mut Ident) {
        self.can_be_named &= ident != "Self";
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        self.can_be_named &= lifetime.ident == "static";
    }
}

/// Writes `_` for each `impl Trait`.
struct InferOpaqueTypes;

impl VisitMut for InferOpaqueTypes {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Type::ImplTrait(_) = ty {
            *ty = syn::parse_quote!(_);
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }
}
