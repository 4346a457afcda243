//! A batch is stored whole or not at all, in its order, with nothing in between.

use super::Tenant;

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (index, batch) in tenant.batches.iter().enumerate() {
        let whose = format!("{} batch {}", batch.publisher, batch.number);
        let fresh: Vec<_> = tenant.fresh(index).map(|event| event.id.as_str()).collect();
        let places = fresh.iter().map(|id| tenant.place.get(id).copied());
        let places: Vec<Option<u64>> = places.collect();
        let there: Vec<u64> = places.iter().copied().flatten().collect();
        // Retention may have taken the first ones.
        let torn = batch.atomic
            && !there.is_empty()
            && there.len() < fresh.len()
            && (tenant.earliest() == 1 || there[0] != tenant.earliest());
        if torn {
            let missing = fresh.iter().zip(&places).find(|(_, place)| place.is_none());
            let missing = missing.map_or("", |(id, _)| id);
            found.push(format!(
                "{whose}, sent at {}, is stored in part: {there:?}, but not {missing}",
                tenant.when(batch.sent)
            ));
        }
        if there.windows(2).any(|two| two[1] != two[0] + 1) {
            found.push(format!(
                "{whose}, sent at {}, is not contiguous: {there:?} for {fresh:?}",
                tenant.when(batch.sent)
            ));
        }
    }
    found
}
