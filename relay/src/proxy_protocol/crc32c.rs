//! The checksum of PROXY protocol headers: CRC-32C (Castagnoli), a few dozen bytes at a time.

/// The checksum of the pieces, one after the other.
pub(super) fn checksum(pieces: &[&[u8]]) -> u32 {
    /// 0x1EDC6F41, its bits the other way round.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = !0u32;
    for byte in pieces.iter().copied().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= POLYNOMIAL;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_the_standard() {
        // RFC 3720, appendix B.4, and the customary check value.
        assert_eq!(checksum(&[b"123456789"]), 0xe306_9283);
        assert_eq!(checksum(&[b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(checksum(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(checksum(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(checksum(&[]), 0);
    }
}
