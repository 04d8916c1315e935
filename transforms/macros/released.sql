-- Post-processing of released tables: it looks at noisy numbers only, so it costs no privacy.

{# The segment of an aggregate bucket, and the bucket with all segments together. #}
{% macro segment_of(bucket) -%} split_part({{ bucket }}, '|', 3) {%- endmacro %}

{% macro bucket_of_all_segments(bucket) -%}
    split_part({{ bucket }}, '|', 1) || '|' || split_part({{ bucket }}, '|', 2) || '|any|' || split_part({{ bucket }}, '|', 4)
{%- endmacro %}

{# The rows of `relation` by segment and, as segment `all`, summed over segments; a cell of no segment (`any`) is in `all`
   alone. The columns in `merged` have a twin `overall_…` with all segments together. `sums` are numbers with their types,
   `sigmas` their noise: that of a sum of cells is the root of the sum of their variances. #}
{% macro by_segment_and_all(relation, keys, merged, sums, sigmas) -%}
    {%- set alike = [
        'release_id', 'window_start', 'window_end', 'unit_of_privacy', 'rho', 'delta', 'minimum_customers', 'shrinkage'
    ] + keys -%}
    select
        {{ alike | join(', ') }},
        'all' as segment,
        {%- for column in merged %}
        overall_{{ column }} as {{ column }},
        {%- endfor %}
        {%- for column, type in sums.items() %}
        cast(sum({{ column }}) as {{ type }}) as {{ column }},
        {%- endfor %}
        {%- for column in sigmas %}
        sqrt(sum({{ column }} * {{ column }})) as {{ column }}{{ ',' if not loop.last }}
        {%- endfor %}
    from {{ relation }}
    group by {{ alike | join(', ') }}, overall_{{ merged | join(', overall_') }}
    union all
    select {{ alike | join(', ') }}, segment, {{ merged | join(', ') }}, {{ sums | join(', ') }}, {{ sigmas | join(', ') }}
    from {{ relation }}
    where segment <> 'any'
{%- endmacro %}

{# A mean pulled to its `prior` by `shrinkage` customers' worth, and by more where there is noise. Own mean of n customers:
   variance spread / n + noise / n^2; means around their prior: spread / shrinkage. The best weights of the two (empirical
   Bayes) are n and the denominator's second part; without noise that is the shrinkage itself. #}
{% macro shrunk(total, n, prior, noise, spread) -%}
    ({{ total }} + shrinkage * (1 + ({{ noise }}) / ({{ spread }} * {{ n }})) * {{ prior }})
    / ({{ n }} + shrinkage * (1 + ({{ noise }}) / ({{ spread }} * {{ n }})))
{%- endmacro %}

{# Largest variance of a value with this mean between 0 and 1, or `low` and `high`; never near 0, where noise would be
   infinitely larger. #}
{% macro largest_spread(mean, low=0.0, high=1.0) -%}
    greatest(({{ high }} - {{ mean }}) * ({{ mean }} - {{ low }}), 0.01 * ({{ high }} - {{ low }}) * ({{ high }} - {{ low }}))
{%- endmacro %}

{# The rows of `relation` with `kept`: the non-negative numbers nearest to the noisy `value`s that keep each group's sum
   (its own sum where that is negative counts as 0). Setting negative cells to 0 instead would add 0.4 sigma for every
   empty cell. Source: Duchi et al. (2008), projection onto the simplex; Wang et al. (2020, arXiv:1905.08320) "Norm-Sub". #}
{% macro without_negatives(relation, value, groups, key) -%}
    select
        *,
        greatest({{ value }} - max(case when {{ value }} > excess then excess end) over (
            partition by {{ groups | join(', ') }}
        ), 0.0) as kept
    from (
        select
            *,
            (
                sum({{ value }}) over (partition by {{ groups | join(', ') }} order by {{ value }} desc, {{ key }}
                    rows between unbounded preceding and current row)
                - greatest(sum({{ value }}) over (partition by {{ groups | join(', ') }}), 0)
            ) / row_number() over (partition by {{ groups | join(', ') }} order by {{ value }} desc, {{ key }}) as excess
        from {{ relation }}
    ) as with_excess
{%- endmacro %}

{# Half of a 95 % bar: sampling and noise of the cell itself. Shrinkage moves the estimate and never narrows its bar.
   Of the share of one among `n` rows of a cell: its own noise is part of that of the cell. #}
{% macro half_width_of_share(share, n, sigma, variance_of_cell) -%}
    1.96 * sqrt(
        {{ share }} * (1 - {{ share }}) * {{ n }}
        + {{ sigma }} * {{ sigma }} * (1 - {{ share }})
        + {{ share }} * {{ share }} * {{ variance_of_cell }}
    ) / greatest({{ n }}, 1.0)
{%- endmacro %}

{# Of the mean over `n` customers of what varies by `spread`. #}
{% macro half_width_of_mean(mean, spread, n, sigma, sigma_n) -%}
    1.96 * sqrt(
        {{ spread }} * {{ n }} + {{ sigma }} * {{ sigma }} + {{ mean }} * {{ mean }} * {{ sigma_n }} * {{ sigma_n }}
    ) / {{ n }}
{%- endmacro %}

{# What leaves of a cell: the estimate, and the bar around the cell's own figure, stretched to hold the estimate, between
   the bounds. Nothing of a suppressed cell. #}
{% macro estimate_with_bar(name, estimate, own, lowest=0.0, highest=1.0) -%}
        case when not is_suppressed then {{ estimate }} end as {{ name }},
        case when not is_suppressed then greatest(least({{ own }} - half_width, {{ estimate }}), {{ lowest }}) end as low,
        case when not is_suppressed then least(greatest({{ own }} + half_width, {{ estimate }}), {{ highest }}) end as high
{%- endmacro %}
