//! Client system architectures, as option 93 names them (RFC 4578 section 2.1,
//! IANA "Processor Architecture Types").

use super::words;

words! {
    /// What a boot ROM says it is. The number 9 was meant for "EFI x86-64" and 7
    /// for "EFI BC"; an erratum of RFC 4578 swaps them and firmware sends both for x64.
    pub enum Arch {
        /// PC BIOS (0).
        Bios = "bios",
        /// UEFI on 32-bit x86 (6).
        EfiIa32 = "efi-ia32",
        /// UEFI on x86-64 (7 and 9).
        EfiX64 = "efi-x64",
        /// UEFI on 64-bit ARM (11).
        EfiArm64 = "efi-arm64",
        /// UEFI HTTP Boot on 32-bit x86 (15).
        HttpIa32 = "http-ia32",
        /// UEFI HTTP Boot on x86-64 (16).
        HttpX64 = "http-x64",
        /// UEFI HTTP Boot on 64-bit ARM (19).
        HttpArm64 = "http-arm64",
        /// Any other number: named in events, never given a loader.
        Other = "other",
    }
}

impl Arch {
    /// The architecture for a number of option 93.
    #[must_use]
    pub const fn from_option_93(number: u16) -> Self {
        match number {
            0 => Self::Bios,
            6 => Self::EfiIa32,
            7 | 9 => Self::EfiX64,
            11 => Self::EfiArm64,
            15 => Self::HttpIa32,
            16 => Self::HttpX64,
            19 => Self::HttpArm64,
            _ => Self::Other,
        }
    }

    /// True for the HTTP Boot numbers, whose boot file is a URL.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::HttpIa32 | Self::HttpX64 | Self::HttpArm64)
    }

    /// True where the firmware is UEFI.
    #[must_use]
    pub const fn is_efi(self) -> bool {
        !matches!(self, Self::Bios | Self::Other)
    }

    /// Base names of loaders that suit this architecture, best first. Empty: we know none.
    #[must_use]
    pub const fn loaders(self) -> &'static [&'static str] {
        match self {
            Self::Bios => &["undionly.kpxe"],
            Self::EfiX64 | Self::HttpX64 => &["snponly.efi", "ipxe.efi"],
            Self::EfiIa32 | Self::HttpIa32 => &["snponly-ia32.efi", "ipxe-ia32.efi"],
            Self::EfiArm64 | Self::HttpArm64 => &["snponly-arm64.efi", "ipxe-arm64.efi"],
            Self::Other => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_option_93() {
        assert_eq!(Arch::from_option_93(7), Arch::from_option_93(9));
        assert_eq!(Arch::from_option_93(0), Arch::Bios);
        assert!(Arch::from_option_93(16).is_http());
        assert_eq!(Arch::from_option_93(4), Arch::Other);
        assert!(Arch::Other.loaders().is_empty());
    }
}
