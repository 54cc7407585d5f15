//! What a service, a method and an event are, and the `service!` list that declares them.

use serde::{Serialize, de::DeserializeOwned};

/// What a method may do, which decides how its calls are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing: may be repeated freely and needs no record.
    Read,
    /// Changes state: its owner records operation id and reply together with the change.
    Write,
    /// Answers with any number of items and then an end; never resent, the caller opens a new one.
    Stream,
}

/// A message that asks a service for something.
pub trait Request: Serialize + DeserializeOwned + Send + 'static {
    /// What comes back: the one answer, or each item when [`Kind::Stream`].
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The contract this request belongs to.
    type Service: Service;
    /// `service.method`, which is also its name on the wire.
    const NAME: &'static str;
    /// Whether it reads, writes or streams.
    const KIND: Kind;
}

/// A contract: a named set of methods and the topics its owner emits.
pub trait Service: Send + 'static {
    /// The first half of a plugin id, of a method's wire name and of the plugin's folder.
    const NAME: &'static str;
    /// Every method, in declaration order.
    const METHODS: &'static [Method];
    /// Every event its owner may emit.
    const EMITS: &'static [Emits];
    /// Shows each request type to `visitor`, in declaration order.
    fn visit<V: Visitor>(visitor: &mut V);
}

/// One method, as data.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// `service.method`.
    pub name: &'static str,
    /// Whether it reads, writes or streams.
    pub kind: Kind,
}

/// One event topic, as data.
#[derive(Clone, Copy, Debug)]
pub struct Emits {
    /// Slash path, for example `/content/delete`.
    pub topic: &'static str,
    /// Name of the payload struct.
    pub payload: &'static str,
}

/// Something that wants to see every request type of a contract.
pub trait Visitor {
    /// Is shown one request type.
    fn method<R: Request>(&mut self);
}

/// Declares a service: its name, its methods and what it emits. The only macro of the house.
#[macro_export]
macro_rules! service {
    (
        $(#[$doc:meta])*
        $Service:ident = $name:literal {
            $( $(#[$mdoc:meta])* $kind:ident $method:ident($Request:ty) -> $Reply:ty; )*
        } $(emits { $( $topic:literal => $Payload:ident; )* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $Service;
        impl $crate::Service for $Service {
            const NAME: &'static str = $name;
            const METHODS: &'static [$crate::Method] = &[
                $( $crate::Method { name: concat!($name, ".", stringify!($method)), kind: $crate::service!(@kind $kind) }, )*
            ];
            const EMITS: &'static [$crate::Emits] = &[
                $($( $crate::Emits { topic: $topic, payload: stringify!($Payload) }, )*)?
            ];
            fn visit<V: $crate::Visitor>(visitor: &mut V) { $( visitor.method::<$Request>(); )* let _ = visitor; }
        }
        $(
            impl $crate::Request for $Request {
                type Reply = $Reply;
                type Service = $Service;
                const NAME: &'static str = concat!($name, ".", stringify!($method));
                const KIND: $crate::Kind = $crate::service!(@kind $kind);
            }
        )*
    };
    (@kind read) => { $crate::Kind::Read };
    (@kind write) => { $crate::Kind::Write };
    (@kind stream) => { $crate::Kind::Stream };
}
