//! One option for several gateways: `first--none--third`.

/// The values in their order; `None` where `none` or nothing stands.
pub(super) fn split(list: &str) -> impl Iterator<Item = Option<String>> {
    list.split("--").map(str::trim).map(|part| {
        let hole = part.is_empty() || part.eq_ignore_ascii_case("none");
        (!hole).then(|| part.to_owned())
    })
}

/// One value per gateway: a shorter list fills from the left, the rest gets the default (`None`).
/// Fails with the number of values when there are more of them than gateways.
pub(super) fn spread<T>(values: Vec<Option<T>>, count: usize) -> Result<Vec<Option<T>>, usize> {
    if values.len() > count {
        return Err(values.len());
    }
    Ok(values
        .into_iter()
        .chain(std::iter::repeat_with(|| None))
        .take(count)
        .collect())
}
