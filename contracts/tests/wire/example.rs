//! Makes a sample of any message: a deserializer that reads from nowhere.
//!
//! Sample 0 has everything set, sample 1 nothing that may be absent; further ones alternate and choose other variants.
//! Numbers and texts count up, so that two fields that change places change the bytes. Checked names refuse a plain
//! text: whatever text was refused is replaced by one of the next shape.

use contracts::{Fd, fd};
use serde::de::value::{Error, U32Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::collections::BTreeSet;

/// Shapes of text that checked names accept: identifier, digest, plugin id.
const SHAPES: [fn(u64) -> String; 3] = [
    |n| format!("s{n}"),
    |n| format!("sha256:{n:064x}"),
    |n| format!("sample/s{n}"),
];

/// What was met while samples were made.
#[derive(Debug, Default)]
pub(crate) struct Met {
    /// Every enum: its name and its variants in order.
    pub(crate) enums: BTreeSet<(&'static str, &'static [&'static str])>,
    /// Most variants of an enum whose variants carry data.
    pub(crate) variants: usize,
}

/// Makes sample `number` of `T`. Errors: a text that no shape satisfies, or a kind of value that no message may have.
pub(crate) fn example<T: DeserializeOwned>(number: usize, met: &mut Met) -> Result<T, String> {
    let null = std::fs::File::open("/dev/null").map_err(|e| e.to_string())?;
    let null = Fd::from(std::os::fd::OwnedFd::from(null));
    let mut shapes = Vec::new();
    loop {
        let mut maker = Maker {
            number,
            count: 0,
            texts: 0,
            shapes: &mut shapes,
            met,
            chosen: 0,
        };
        let made = fd::receiving(vec![null.clone(); 256], || T::deserialize(&mut maker));
        let refused = match made {
            Ok(value) => return Ok(value),
            Err(error) => error.to_string(),
        };
        match shapes.last_mut() {
            Some(shape) if *shape + 1 < SHAPES.len() => *shape += 1,
            _ => return Err(refused),
        }
    }
}

struct Maker<'a> {
    number: usize,
    count: u64,
    texts: usize,
    /// Which shape each text has, in the order the texts are made.
    shapes: &'a mut Vec<usize>,
    met: &'a mut Met,
    /// Variants of the enum that is being made.
    chosen: usize,
}

impl Maker<'_> {
    fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn full(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    fn text(&mut self) -> String {
        if self.texts == self.shapes.len() {
            self.shapes.push(0);
        }
        self.texts += 1;
        SHAPES[self.shapes[self.texts - 1]](self.count())
    }
}

/// Numbers that need every byte of their type, but for `u32`: a descriptor's place in its table is one.
macro_rules! numbers {
    ($($method:ident => $visit:ident($number:expr);)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let count = self.count();
            visitor.$visit($number(count))
        }
    )* };
}

macro_rules! refused {
    ($($method:ident)*) => { $(
        fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom(concat!(stringify!($method), ": no message may have such a value")))
        }
    )* };
}

impl<'de> Deserializer<'de> for &mut Maker<'_> {
    type Error = Error;

    numbers! {
        deserialize_u8 => visit_u64(|n| n % 256);
        deserialize_u16 => visit_u64(|n| 0x100 + n);
        deserialize_u32 => visit_u64(|n| n);
        deserialize_u64 => visit_u64(|n| n << 56 | n);
        deserialize_i8 => visit_i64(|n| -((n % 128) as i64));
        deserialize_i16 => visit_i64(|n| -(n as i64) - 0x100);
        deserialize_i32 => visit_i64(|n| -(n as i64) - 0x1_0000);
        deserialize_i64 => visit_i64(|n| -(n as i64) - 0x1_0000_0000);
        deserialize_f64 => visit_f64(|n| n as f64);
    }

    refused! { deserialize_any deserialize_char deserialize_str deserialize_f32 deserialize_ignored_any deserialize_identifier }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.full())
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.text())
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_byte_buf(self.count().to_le_bytes().to_vec())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.full() {
            visitor.visit_some(self)
        } else {
            visitor.visit_none()
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = usize::from(self.full());
        visitor.visit_seq(Few { maker: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Few { maker: self, left })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Few { maker: self, left })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = usize::from(self.full());
        visitor.visit_map(Few { maker: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let left = fields.len();
        visitor.visit_seq(Few { maker: self, left })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.met.enums.insert((name, variants));
        self.chosen = variants.len();
        visitor.visit_enum(self)
    }
}

/// So many values of a sequence, a map or a struct.
struct Few<'a, 'b> {
    maker: &'a mut Maker<'b>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Few<'_, '_> {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.maker).map(Some)
    }
}

impl<'de> MapAccess<'de> for Few<'_, '_> {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next_element_seed(seed)
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(&mut *self.maker)
    }
}

impl<'de> EnumAccess<'de> for &mut Maker<'_> {
    type Error = Error;
    type Variant = Self;
    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        let index = (self.number / 2 % self.chosen) as u32;
        let index: U32Deserializer<Error> = index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Maker<'_> {
    type Error = Error;
    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.met.variants = self.met.variants.max(self.chosen);
        seed.deserialize(self)
    }
    fn tuple_variant<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        self.met.variants = self.met.variants.max(self.chosen);
        visitor.visit_seq(Few { maker: self, left })
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.tuple_variant(fields.len(), visitor)
    }
}

#[test]
fn a_text_that_is_refused_is_replaced_by_another_shape() {
    let digest: contracts::Digest = example(0, &mut Met::default()).unwrap();
    assert_eq!(digest.algorithm(), "sha256");
    let refused = example::<Never>(0, &mut Met::default()).unwrap_err();
    assert_eq!(refused, "nothing pleases");
}

#[derive(Debug)]
struct Never;

impl<'de> serde::Deserialize<'de> for Never {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?;
        Err(serde::de::Error::custom("nothing pleases"))
    }
}
