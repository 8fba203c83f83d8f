//! Finds results that JSON would change without an error.
//!
//! JSON has one `null`. serde_json writes it for `None`, for `()` and for a float that is not finite, and reads it as
//! `None`. So `Some(())`, `Some(None)` and `Some(f64::NAN)` would all be read back as `None`.

use serde::ser::{self, Error as _, Serialize};

type Error = serde_json::Error;

/// Fails if the value contains a `Some` that JSON would read back as `None`, or a float that is not finite.
pub(crate) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), Error> {
    value.serialize(Checker).map(drop)
}

/// Whether JSON writes `null` for a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Null,
    Other,
}

/// Serializes a value into nothing.
struct Checker;

macro_rules! never_null {
    ($($method:ident($ty:ty))*) => {
        $(fn $method(self, _: $ty) -> Result<Written, Error> {
            Ok(Written::Other)
        })*
    };
}

impl ser::Serializer for Checker {
    type Ok = Written;
    type Error = Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    never_null! {
        serialize_bool(bool) serialize_char(char) serialize_str(&str) serialize_bytes(&[u8])
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64) serialize_i128(i128)
        serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64) serialize_u128(u128)
    }

    fn serialize_f32(self, value: f32) -> Result<Written, Error> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<Written, Error> {
        if value.is_finite() {
            Ok(Written::Other)
        } else {
            Err(Error::custom("it has a float that is infinite or not a number, for which JSON writes `null`"))
        }
    }

    fn serialize_none(self) -> Result<Written, Error> {
        Ok(Written::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Written, Error> {
        match value.serialize(self)? {
            Written::Null => Err(Error::custom(
                "it has a `Some` for which JSON writes `null`, so it would be read back as `None`: use a `bool` or an enum",
            )),
            Written::Other => Ok(Written::Other),
        }
    }

    fn serialize_unit(self) -> Result<Written, Error> {
        Ok(Written::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Written, Error> {
        Ok(Written::Null)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<Written, Error> {
        Ok(Written::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Written, Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<Written, Error> {
        value.serialize(self).map(|_| Written::Other)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }
}

macro_rules! parts {
    ($($part:ident::$method:ident($($name:ty)?))*) => {
        $(impl ser::$part for Checker {
            type Ok = Written;
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Result<(), Error> {
                check(value)
            }

            fn end(self) -> Result<Written, Error> {
                Ok(Written::Other)
            }
        })*
    };
}

parts! {
    SerializeSeq::serialize_element()
    SerializeTuple::serialize_element()
    SerializeTupleStruct::serialize_field()
    SerializeTupleVariant::serialize_field()
    SerializeStruct::serialize_field(&'static str)
    SerializeStructVariant::serialize_field(&'static str)
}

impl ser::SerializeMap for Checker {
    type Ok = Written;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        check(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        check(value)
    }

    fn end(self) -> Result<Written, Error> {
        Ok(Written::Other)
    }
}
