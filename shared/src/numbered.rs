//! Enums whose variants have the numbers of an interface, of which any number may come: each stands in its list once.

/// Makes one: its documentation, name and type of its numbers, by what visibility and name a number becomes one, and
/// its variants.
macro_rules! numbered {
    (
        $(#[$outer:meta])* $name:ident: $repr:ident, $vis:vis fn $from:ident;
        $($(#[$doc:meta])* $variant:ident = $number:literal;)*
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($repr)]
        pub enum $name {
            $($(#[$doc])* $variant = $number,)*
        }

        impl $name {
            /// All of them, for tests and tables.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }

            /// The one with this number, if there is one.
            $vis const fn $from(number: $repr) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use numbered;
