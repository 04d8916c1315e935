{# No row makes the condition false or unknown. #}
{% test every_row_satisfies(model, condition) %}

select *
from {{ model }}
where not coalesce({{ condition }}, false)

{% endtest %}
