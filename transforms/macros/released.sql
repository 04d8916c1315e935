-- Post-processing of released tables: it looks at noisy numbers only, so it costs no privacy.

{# The segment of an aggregate bucket, and the bucket with all segments together. #}
{% macro segment_of(bucket) -%} split_part({{ bucket }}, '|', 3) {%- endmacro %}

{% macro bucket_of_all_segments(bucket) -%}
    split_part({{ bucket }}, '|', 1) || '|' || split_part({{ bucket }}, '|', 2) || '|any|' || split_part({{ bucket }}, '|', 4)
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
