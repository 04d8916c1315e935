-- Which rows may enter the exact tables, and which of a customer's rows do. Everything here looks at one customer's
-- rows, the salt and --vars; nothing looks at other customers. That is what the sensitivity of a release rests on.

{# Days of the window to be released; none while no window is due. #}
{% macro is_in_window(day) -%}
    {%- if var('privacy_window_start') and var('privacy_window_end') -%}
        {{ day }} >= date '{{ var("privacy_window_start") }}' and {{ day }} < date '{{ var("privacy_window_end") }}'
    {%- else -%}
        false
    {%- endif -%}
{%- endmacro %}

{# Whether a customer judges policies and so enters no table: the rule of rl/datasets/splits.py. Hexadecimal digits of
   equal length sort like the numbers they write. #}
{% macro is_held_out(customer) -%}
    {%- set first_kept = (var('privacy_validation_share') * 4294967296) | round(0, 'ceil') | int -%}
    substr({{ sha256_hex("'validation|' || " ~ customer) }}, 1, 8) < '{{ "%08x" % first_kept }}'
{%- endmacro %}

{# A value to order a customer's own rows by: as good as random, and the same in every run. `parts` are text. #}
{% macro salted_hash(parts) -%}
    {%- set salt = var('privacy_salt') | replace("'", "''") -%}
    {{ sha256_hex("'" ~ salt ~ "|' || " ~ parts | join(" || '|' || ")) }}
{%- endmacro %}

{# A reward in thousandths of its unit, within the configured bounds; null and not-a-number too. #}
{% macro bounded_milli(reward) -%}
    cast(
        least(
            greatest(round(coalesce({{ reward }}, 0.0) * 1000), {{ (var('privacy_reward_low') * 1000) | round | int }}),
            {{ (var('privacy_reward_high') * 1000) | round | int }}
        ) as bigint
    )
{%- endmacro %}
