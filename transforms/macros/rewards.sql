-- The reward definition and the state bucket: formulas that more than one model writes, from --vars.

{# A value within its clips; null stays null (least and greatest would skip it). #}
{% macro clipped(value, part) -%}
    case
        when {{ value }} is not null
            then least(
                greatest(cast({{ value }} as double), cast({{ var('reward_' ~ part ~ '_clip_low') }} as double)),
                cast({{ var('reward_' ~ part ~ '_clip_high') }} as double)
            )
    end
{%- endmacro %}

{% macro reward_weight(part) -%} cast({{ var('reward_' ~ part ~ '_weight') }} as double) {%- endmacro %}

{# The weighted sum of the parts, given one expression for each. #}
{% macro weighted_reward(conversion_value, conversion, rating, engagement, cost) -%}
    {{ reward_weight('conversion_value') }} * {{ conversion_value }}
    + {{ reward_weight('conversion') }} * {{ conversion }}
    + {{ reward_weight('rating') }} * {{ rating }}
    + {{ reward_weight('engagement') }} * {{ engagement }}
    + {{ reward_weight('cost') }} * {{ cost }}
{%- endmacro %}

{# '1', '2-3', …, '8+': the band of a step's number (counted from 1). #}
{% macro turn_band(step_number) -%}
    {%- set edges = var('state_bucket_turns') -%}
    case
        {%- for edge in edges[1:] %}
            {%- set below = edges[loop.index0] %}
        when {{ step_number }} < {{ edge }}
            then '{{ below if edge == below + 1 else below ~ "-" ~ (edge - 1) }}'
        {%- endfor %}
        else '{{ edges[-1] }}+'
    end
{%- endmacro %}
