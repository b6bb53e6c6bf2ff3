//! Which versions of etcd are known to lose events or to answer with old data.

/// The oldest good release of each line. Newer lines are taken to be good.
const GOOD: [(u64, u64, u64); 3] = [(3, 4, 42), (3, 5, 28), (3, 6, 9)];

/// What to tell the operator about this version, if anything.
pub(super) fn warning(version: &str) -> Option<String> {
    let mut numbers = version
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u64>().ok());
    let (Some(major), Some(minor), Some(patch)) = (
        numbers.next().flatten(),
        numbers.next().flatten(),
        numbers.next().flatten(),
    ) else {
        return Some(format!(
            "etcd calls its version {version:?}, which cannot be read"
        ));
    };
    let [(first_major, first_minor, _), ..] = GOOD;
    if (major, minor) < (first_major, first_minor) {
        return Some(format!("etcd {version} is too old; use 3.6.9 or newer"));
    }
    let (_, _, good) = GOOD
        .into_iter()
        .find(|(a, b, _)| (*a, *b) == (major, minor))?;
    (patch < good).then(|| {
        format!(
            "etcd {version} is known to lose watch events and to give old answers after a pause; \
             use {major}.{minor}.{good} or newer"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_releases_are_named() {
        for (version, warned) in [
            ("3.3.27", true),
            ("3.4.23", true),
            ("3.4.41", true),
            ("3.4.42", false),
            ("3.5.27", true),
            ("3.5.28", false),
            ("3.6.8-rc.1", true),
            ("3.6.9", false),
            ("3.7.0", false),
            ("4.0.0", false),
            ("weird", true),
        ] {
            assert_eq!(warning(version).is_some(), warned, "{version}");
        }
    }
}
