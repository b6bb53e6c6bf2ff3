//! Certificates and keys out of PEM text or DER bytes.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::CertificateDer;

use super::{KeyForm, MaterialError, PrivateKey, Problem};
use crate::identity;
use crate::secret::Secret;

/// Longest field that is looked at, in bytes.
pub const LONGEST: usize = 256 * 1024;
/// Most certificates in one field.
pub const MOST_CERTIFICATES: usize = 64;

/// Every certificate of a field, in its order: a PEM bundle (text around the blocks and keys among them are
/// passed over), or one certificate in DER.
///
/// # Errors
/// [`MaterialError`], which names `field` and what was found instead.
pub fn certificates(
    bytes: &[u8],
    field: &str,
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let wrong = |problem| MaterialError::new(field, problem);
    let Some(blocks) = blocks(bytes).map_err(wrong)? else {
        let certificate = CertificateDer::from(bytes.to_vec());
        return match identity::parse(&certificate) {
            Ok(_) => Ok(vec![certificate]),
            Err(_) => Err(wrong(Problem::NotACertificate)),
        };
    };
    let found: Vec<_> = blocks
        .iter()
        .filter(|block| matches!(block.tag(), "CERTIFICATE" | "X509 CERTIFICATE"))
        .map(|block| CertificateDer::from(block.contents().to_vec()))
        .collect();
    if found.is_empty() {
        return Err(wrong(Problem::OnlyOther(labels(&blocks))));
    }
    if found.len() > MOST_CERTIFICATES {
        return Err(wrong(Problem::TooMany));
    }
    let damaged = found.iter().position(|one| identity::parse(one).is_err());
    match damaged {
        Some(at) => Err(wrong(Problem::DamagedCertificate(at + 1))),
        None => Ok(found),
    }
}

/// The one private key of a field, PEM or DER.
pub(super) fn private_key(
    bytes: &Secret<Vec<u8>>,
    field: &str,
) -> Result<PrivateKey, MaterialError> {
    let wrong = |problem| MaterialError::new(field, problem);
    let bytes = bytes.expose();
    let key = match blocks(bytes).map_err(wrong)? {
        Some(blocks) => key_of(&blocks).map_err(wrong)?,
        // Which form DER has is found out by trying.
        None => {
            let forms = [KeyForm::Pkcs8, KeyForm::Sec1, KeyForm::Pkcs1];
            let candidate = |form| PrivateKey {
                form,
                der: Secret::new(bytes.clone()),
            };
            return forms
                .into_iter()
                .map(candidate)
                .find(usable)
                .ok_or_else(|| wrong(Problem::NoKey));
        }
    };
    if usable(&key) {
        Ok(key)
    } else {
        Err(wrong(Problem::UnusableKey))
    }
}

fn key_of(blocks: &[pem::Pem]) -> Result<PrivateKey, Problem> {
    let mut found = Vec::new();
    for block in blocks {
        let form = match block.tag() {
            "PRIVATE KEY" => KeyForm::Pkcs8,
            "RSA PRIVATE KEY" => KeyForm::Pkcs1,
            "EC PRIVATE KEY" => KeyForm::Sec1,
            "ENCRYPTED PRIVATE KEY" => return Err(Problem::EncryptedKey),
            _ => continue,
        };
        if block.headers().get("Proc-Type").is_some() {
            return Err(Problem::EncryptedKey);
        }
        found.push(PrivateKey {
            form,
            der: Secret::new(block.contents().to_vec()),
        });
    }
    match (found.pop(), found.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), others) => Err(Problem::SeveralKeys(others + 1)),
        (None, _) => Err(Problem::NoKey),
    }
}

fn usable(key: &PrivateKey) -> bool {
    any_supported_type(&key.borrowed()).is_ok()
}

/// The blocks of PEM text; `None` if it is none.
fn blocks(bytes: &[u8]) -> Result<Option<Vec<pem::Pem>>, Problem> {
    if bytes.trim_ascii().is_empty() {
        return Err(Problem::Empty);
    }
    if bytes.len() > LONGEST {
        return Err(Problem::TooLong);
    }
    if !bytes.windows(10).any(|window| window == b"-----BEGIN") {
        return Ok(None);
    }
    let blocks =
        pem::parse_many(bytes).map_err(|error| Problem::DamagedPem(kind_of(&error).to_owned()))?;
    if blocks.is_empty() {
        return Err(Problem::DamagedPem("no whole block".to_owned()));
    }
    Ok(Some(blocks))
}

/// Only the kind of damage: the text of such an error can quote what it could not read, which may be a key.
fn kind_of(error: &pem::PemError) -> &'static str {
    match error {
        pem::PemError::MismatchedTags(..) => "the BEGIN and END lines do not agree",
        pem::PemError::MalformedFraming => "a BEGIN or END line is missing or damaged",
        pem::PemError::MissingBeginTag => "there is no BEGIN line",
        pem::PemError::MissingEndTag => "there is no END line",
        pem::PemError::MissingData => "a block is empty",
        pem::PemError::InvalidData(_) => "a block is not base64",
        pem::PemError::NotUtf8(_) => "it is no text",
        _ => "a header line is damaged",
    }
}

fn labels(blocks: &[pem::Pem]) -> String {
    let mut labels: Vec<_> = blocks.iter().map(pem::Pem::tag).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.truncate(4);
    let shown: String = labels.join(", ").chars().take(80).collect();
    shown
}
