//! Puts the declared return type where the compiler uses it to infer the type of the body.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{Lifetime, ReturnType, Signature, Token, Type, TypeParamBound};

use crate::runtime::Runtime;

/// Emits a `return` of the declared type that is never executed. With it, inference and errors are those of the
/// function as it was written. A body that is still being typed has no value yet, so its `return` has no type.
pub(crate) fn never_returned(signature: &Signature, private: &Runtime, is_half_typed: bool) -> TokenStream {
    let name = if is_half_typed { "typed" } else { "never" };
    let never = |ty: &dyn ToTokens, span: Span| never(name, ty, span, private);
    let ReturnType::Type(_, declared) = &signature.output else {
        return never(&quote!(()), Span::mixed_site());
    };
    // This is the span of the return type, because the type of the body comes from there.
    let span = declared.span().resolved_at(Span::mixed_site());
    let mut opaque = OpaqueTypes { named: Vec::new(), can_be_named: signature.generics.params.is_empty() };
    let mut inferred = (**declared).clone();
    opaque.visit_type_mut(&mut inferred);
    if !opaque.can_be_named {
        let mut inferred = (**declared).clone();
        InferOpaqueTypes.visit_type_mut(&mut inferred);
        return never(&inferred, span);
    }
    if opaque.named.is_empty() {
        return never(&inferred, span);
    }
    let (names, bounds): (Vec<_>, Vec<_>) = opaque.named.into_iter().unzip();
    quote! {
        fn __idempotent_declared<#(#names: #bounds),*>() -> #inferred {
            #private::never()
        }
        return __idempotent_declared();
    }
}

fn never(name: &str, ty: &dyn ToTokens, span: Span, private: &Runtime) -> TokenStream {
    let (private, name) = (private.located(span), Ident::new(name, span));
    quote_spanned! {span=> return #private::#name::<#ty>(); }
}

/// Turns each `impl Trait` into a type parameter with its bounds. For example,
/// `impl Stream<Item = Result<Event, Infallible>>` names the error of the items, so the body need not name it.
struct OpaqueTypes {
    named: Vec<(Ident, Punctuated<TypeParamBound, Token![+]>)>,
    /// False if the declared type uses the handler's generics or `Self`, which a nested function does not see, or
    /// captures a lifetime, which a type parameter cannot do.
    can_be_named: bool,
}

impl VisitMut for OpaqueTypes {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        // The inner types come first, because they are parameters of the outer type's bounds.
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
